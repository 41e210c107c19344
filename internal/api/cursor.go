package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
)

// A cursor is the place where a page ended, and a seal: it goes on in the list
// that it came from, with the same filters, and nowhere else.
const (
	placeBytes = 8
	sealBytes  = 16
)

// cursors makes and reads them.
type cursors struct {
	keys [][]byte
}

// newCursors derives keys of its own from the secrets, the first of which
// signs while all verify.
func newCursors(secrets [][]byte) cursors {
	c := cursors{}
	for _, secret := range secrets {
		c.keys = append(c.keys, seal(secret, []byte("passbook cursor v1")))
	}
	return c
}

// encode makes the cursor that goes on after place in list. list names the list
// and every filter of it.
func (c cursors) encode(list string, place int64) string {
	token := binary.BigEndian.AppendUint64(make([]byte, 0, placeBytes+sealBytes), uint64(place)) //nolint:gosec // the bits, there and back
	token = append(token, seal(c.keys[0], token, []byte(list))[:sealBytes]...)
	return base64.RawURLEncoding.EncodeToString(token)
}

// decode reads a cursor of list.
func (c cursors) decode(list, text string) (place int64, err error) {
	token, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err == nil && len(token) == placeBytes+sealBytes && !strings.ContainsAny(text, "\r\n") { // which base64 skips
		for _, key := range c.keys {
			if hmac.Equal(token[placeBytes:], seal(key, token[:placeBytes], []byte(list))[:sealBytes]) {
				return int64(binary.BigEndian.Uint64(token)), nil //nolint:gosec // the bits, there and back
			}
		}
	}
	return 0, newProblem(http.StatusBadRequest, "invalid_cursor",
		"A cursor goes on in the list that it came from, with the same filters. Start again without one.")
}

func seal(key []byte, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, key)
	for _, part := range parts {
		_, _ = mac.Write(part) // never fails
	}
	return mac.Sum(nil)
}
