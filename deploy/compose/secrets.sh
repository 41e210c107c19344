#!/bin/sh
# Makes the secrets of compose.yaml that deploy/compose/secrets does not have yet.
#
# Only the owner can open the folder. All users can read the files: compose mounts each into the
# container of a service, whose user is not the owner.
set -eu

cd "$(dirname "$0")"
mkdir -p secrets
chmod 700 secrets
cd secrets

# keep writes the file of a secret, unless it is there.
keep() {
	[ -e "$1" ] || {
		printf '%s\n' "$2" >"$1.new"
		chmod 444 "$1.new"
		mv "$1.new" "$1"
	}
}

random() { openssl rand -hex 32; }

url() { echo "postgres://$1:$(cat "$2")@postgres:5432/passbook?sslmode=disable"; }

for name in postgres_password owner_password serving_password operator_password redis_password ops_token ops_read_token grafana_password; do
	keep $name "$(random)"
done
keep jwt_keys "first:$(openssl rand -base64 32)"
keep owner_database_url "$(url passbook_owner owner_password)"
keep database_url "$(url passbook_serving serving_password)"
keep operator_database_url "$(url passbook_operator operator_password)"
keep redis_url "redis://passbook:$(cat redis_password)@redis:6379/0"
keep redis_users "user default off
user health on >health +ping
user passbook on >$(cat redis_password) ~* &* +@all"
