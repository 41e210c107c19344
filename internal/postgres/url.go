package postgres

import (
	"errors"

	"github.com/jackc/pgx/v5/pgxpool"
)

// errURL says nothing of the URL, and nothing of what pgx says of it: wherever its form
// is wrong, any part may be the password's, and pgx's error quotes it.
var errURL = errors.New("the database URL can't be used: its form, a parameter, or a file that it names")

// ParseURL reads a database URL with the settings of a pool, which only a pool's parser
// tells from the server's. No error of it holds any part of the URL.
func ParseURL(url string) (*pgxpool.Config, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, errURL
	}
	return cfg, nil
}
