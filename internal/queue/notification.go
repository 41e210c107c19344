package queue

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/uuid"
)

// Notification says that an account has queued jobs. It names the last of them.
type Notification struct {
	JobID     uuid.UUID
	AccountID int64 // 0: unknown
	Position  int64 // of the job; 0: unknown
	Jobs      int   // how many of the account's jobs it announces; a wrong number costs only time

	Origins string // the origins of some of the announced jobs, as ParseOrigins reads them; mostly empty
}

// maxNotificationBytes bounds a written notification without its origins: a job's id, three
// numbers, and their separators.
const maxNotificationBytes = 36 + 3*20 + 4

// String returns the notification as a task's payload holds it. The origins are in the task's headers.
func (n Notification) String() string {
	text := append(make([]byte, 0, maxNotificationBytes), n.JobID.String()...)
	for _, number := range []int64{n.AccountID, n.Position, int64(n.Jobs)} {
		text = strconv.AppendInt(append(text, ' '), number, 10)
	}
	return string(text)
}

// listEntry returns the notification as it is written to a list of notifications.
func (n Notification) listEntry() string {
	if n.Origins == "" {
		return n.String()
	}
	return n.String() + " " + n.Origins
}

// parseListEntry reads what listEntry wrote.
func parseListEntry(text string) (Notification, error) {
	var origins string
	if fields := strings.SplitN(text, " ", 5); len(fields) == 5 && len(fields[4]) <= maxOrigins*originBytes {
		text, origins = strings.TrimSuffix(text, " "+fields[4]), fields[4]
	}
	n, err := parseNotification(text)
	if err == nil {
		n.Origins = origins
	}
	return n, err
}

// parseNotification reads what String wrote.
func parseNotification(text string) (n Notification, err error) {
	fields := strings.Split(text, " ")
	if len(fields) != 4 || len(fields[0]) != len(uuid.Nil.String()) {
		return Notification{}, fmt.Errorf("%w: %.100q", ErrMalformedTask, text)
	}
	var errs [4]error
	n.JobID, errs[0] = uuid.Parse(fields[0])
	n.AccountID, errs[1] = strconv.ParseInt(fields[1], 10, 64)
	n.Position, errs[2] = strconv.ParseInt(fields[2], 10, 64)
	n.Jobs, errs[3] = strconv.Atoi(fields[3])
	if err := errors.Join(errs[:]...); err != nil {
		return Notification{}, fmt.Errorf("%w: %.100q", ErrMalformedTask, text)
	}
	return n, nil
}

// Merge combines the notifications of each account into one. It names the job with the highest
// position, and counts the jobs of all of them. The accounts keep their order.
func Merge(all []Notification) (merged []Notification) {
	at := make(map[int64]int, len(all))
	for _, n := range all {
		i, known := at[n.AccountID]
		switch {
		case !known || n.AccountID == 0:
			at[n.AccountID] = len(merged)
			merged = append(merged, n)
		case n.Position > merged[i].Position:
			n.Jobs += merged[i].Jobs
			n.Origins = joinOrigins(n.Origins, merged[i].Origins, maxOrigins)
			merged[i] = n
		default:
			merged[i].Jobs += n.Jobs
			merged[i].Origins = joinOrigins(merged[i].Origins, n.Origins, maxOrigins)
		}
	}
	return merged
}
