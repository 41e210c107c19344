package api

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/http"
	"strings"
)

// A cursor is the position of a page's last item and a MAC of that position and its list. So it
// is valid only in the list that it came from, with the same filters.
const (
	positionBytes = 8
	macBytes      = 16
)

// cursors encodes and decodes cursors.
type cursors struct {
	keys [][]byte
}

// newCursors derives a key from each secret. The first key signs, all verify.
func newCursors(secrets [][]byte) cursors {
	c := cursors{}
	for _, secret := range secrets {
		c.keys = append(c.keys, sum(secret, []byte("passbook cursor v1")))
	}
	return c
}

// encode returns the cursor of the page after position. list names the list and all its filters.
func (c cursors) encode(list string, position int64) string {
	token := binary.BigEndian.AppendUint64(make([]byte, 0, positionBytes+macBytes), uint64(position)) //nolint:gosec // the bits, there and back
	token = append(token, sum(c.keys[0], token, []byte(list))[:macBytes]...)
	return base64.RawURLEncoding.EncodeToString(token)
}

// decode returns the position of a cursor of list.
func (c cursors) decode(list, text string) (position int64, err error) {
	token, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err == nil && len(token) == positionBytes+macBytes && !strings.ContainsAny(text, "\r\n") { // which base64 skips
		for _, key := range c.keys {
			if hmac.Equal(token[positionBytes:], sum(key, token[:positionBytes], []byte(list))[:macBytes]) {
				return int64(binary.BigEndian.Uint64(token)), nil //nolint:gosec // the bits, there and back
			}
		}
	}
	return 0, newProblem(http.StatusBadRequest, "invalid_cursor",
		"This cursor is not from this list with the same filters and order. Start again without a cursor.")
}

func sum(key []byte, parts ...[]byte) []byte {
	mac := hmac.New(sha256.New, key)
	for _, part := range parts {
		_, _ = mac.Write(part) // never fails
	}
	return mac.Sum(nil)
}
