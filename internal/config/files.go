package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

const fileSuffix = "_FILE"

// fileVariables are the variables that may name a file. The file has the value of the variable without
// _FILE. Container platforms mount secrets as files.
var fileVariables = []string{
	"DATABASE_URL_FILE", "READ_DATABASE_URL_FILE", "REDIS_URL_FILE", "JWT_KEYS_FILE", "OPS_TOKEN_FILE", "OPS_READ_TOKEN_FILE",
}

// maxFile is how many bytes of a file are read at most: a wrong name may be that of a device.
const maxFile = 64 << 10

// Value returns the value of a variable, or what its file has. It is empty where the environment
// has neither.
func Value(getenv func(string) string, name string) (string, error) {
	env := environment{getenv: getenv}
	v, text, err := env.lookup(variable{name: name})
	if err != nil {
		return "", fmt.Errorf("%s: %w", v.name, err)
	}
	return text, nil
}

// lookup returns the text of a variable, or what its file has, or its default. It also returns the
// variable as faults name it.
func (env *environment) lookup(v variable) (variable, string, error) {
	text, path := env.getenv(v.name), env.fileOf(v)
	if path == "" {
		return v, cmp.Or(text, v.standard), nil
	}
	name := v.name
	v.name, v.want = name+fileSuffix, "a file with "+v.want
	if text != "" {
		return v, "", fmt.Errorf("set beside %s, keep one of the two", name)
	}
	text, err := readFile(path)
	return v, text, err
}

// isSet reports whether the environment has the variable, or names its file.
func (env *environment) isSet(v variable) bool {
	return env.getenv(v.name) != "" || env.fileOf(v) != ""
}

// fileOf returns the path of the variable's file; empty where the environment names none.
func (env *environment) fileOf(v variable) string {
	if name := v.name + fileSuffix; slices.Contains(fileVariables, name) {
		return env.getenv(name)
	}
	return ""
}

// readFile returns the text of a file without the newline that ends it. An empty one is an error.
func readFile(path string) (string, error) {
	text, err := readBounded(path)
	if fault, ok := errors.AsType[*os.PathError](err); ok {
		err = fault.Err // without the path
	}
	text = strings.TrimSuffix(text, "\n")
	if err == nil && text == "" {
		err = errors.New("empty")
	}
	if err != nil {
		return "", fmt.Errorf("%s: %w", shownPath(path), err)
	}
	return text, nil
}

func readBounded(path string) (string, error) {
	file, err := os.Open(path) //nolint:gosec // the operator names it
	if err != nil {
		return "", err
	}
	defer file.Close() //nolint:errcheck // it was only read
	text, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("longer than %d bytes", maxFile)
	}
	return string(text), err
}

// shownPath returns the path as a fault may show it. A text that is no absolute path is not shown: it
// may be the secret itself, in the wrong variable.
func shownPath(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return "a file without an absolute path"
}
