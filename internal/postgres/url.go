package postgres

import (
	"errors"
	"net"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ParseURL reads a database URL with the settings of a pool. Its errors contain no part of the
// URL: where the form is wrong, any part may be the password, and pgx's own error quotes it.
func ParseURL(url string) (*pgxpool.Config, error) {
	// pgx takes http://host?a=b for a list of parameters.
	if !strings.HasPrefix(url, "postgres://") && !strings.HasPrefix(url, "postgresql://") {
		return nil, errors.New("does not start with postgres:// or postgresql://")
	}
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errors.New("pgx can't use it: its form, a parameter, or a file that it names")
	}
	names := []string{cfg.ConnConfig.Database, cfg.ConnConfig.Host}
	for _, fallback := range cfg.ConnConfig.Fallbacks {
		names = append(names, fallback.Host)
	}
	if strings.Contains(strings.Join(names, " "), "@") { // the errors of a connect repeat the names
		return nil, errors.New("has an @ in a host or the database's name: in a password @ is written %40, and / is %2F")
	}
	return cfg, nil
}

// hostsOf returns the hosts of a URL, each with its port.
func hostsOf(cfg *pgx.ConnConfig) string {
	var hosts []string
	for _, host := range eachHost(cfg) {
		hosts = append(hosts, net.JoinHostPort(host.Host, strconv.Itoa(int(host.Port))))
	}
	return strings.Join(hosts, ",")
}
