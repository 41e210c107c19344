package main

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// keys returns the JWT keys of this machine. The first run makes them and keeps them, so that
// tokens stay valid after a restart.
func keys(path string) (string, error) {
	kept, err := os.ReadFile(path) //nolint:gosec // our own file
	if err == nil {
		return strings.TrimSpace(string(kept)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the JWT keys: %w", err)
	}
	secret := make([]byte, 32)
	_, _ = rand.Read(secret) // never fails
	made := "local:" + base64.StdEncoding.EncodeToString(secret)
	// Renamed into place: after a crash no run reads half a key.
	next := path + ".next"
	err = os.WriteFile(next, []byte(made+"\n"), 0o600)
	if err == nil {
		err = os.Rename(next, path)
	}
	if err != nil {
		return "", fmt.Errorf("keep the JWT keys: %w", err)
	}
	return made, nil
}
