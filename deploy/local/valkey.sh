#!/bin/sh
# Prints the path of a Valkey server, for the variable REDIS_SERVER. Where the
# system has none, it is the package of Debian's backports, unpacked and not
# installed: apt checks its signature. It lies in .local/valkey, or, by root, in
# /var/lib, since the tests' servers then run as a user who may not reach this
# folder.
set -eu
umask 022

main() {
	command -v valkey-server && return
	. /etc/os-release
	[ "$ID" = debian ] || give_up "this is no Debian. Install valkey-server yourself"
	base=$(cd "$(dirname "$0")/../.." && pwd -P)/.local
	[ "$(id -u)" != 0 ] || base=/var/lib
	place=$base/passbook-valkey-$VERSION_CODENAME
	mkdir -p "$base"
	(
		flock 9 # one installation at a time
		[ -d "$place" ] || fetch "$place"
	) 9>"$place.lock"
	echo "$place/usr/bin/valkey-server"
}

# fetch unpacks the packages beside their place; a rename makes them count.
fetch() {
	rm -rf "$1.next"
	mkdir -p "$1.next/apt/lists/partial"
	(
		cd "$1.next/apt"
		echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian $VERSION_CODENAME-backports main" >sources
		apt="apt-get -q -o Dir::Etc::sourcelist=$PWD/sources -o Dir::Etc::sourceparts=- -o Dir::State::lists=$PWD/lists -o APT::Sandbox::User="
		$apt update
		$apt download valkey-server valkey-tools
		for package in *.deb; do dpkg-deb -x "$package" "$1.next"; done
	) >&2
	rm -r "$1.next/apt"
	mv "$1.next" "$1"
}

give_up() {
	echo "valkey.sh: $1" >&2
	exit 1
}

main
