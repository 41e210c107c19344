package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	"github.com/hibiken/asynq"

	"github.com/passbook/passbook/internal/queue"
	"github.com/passbook/passbook/internal/test/testenv"
)

// The dashboard shows the database that the worker works with, whichever form of URL
// names it: an ACL user, a database in the query, defaults left out.
func TestDashboardSharesTheClient(t *testing.T) {
	server, err := url.Parse(testenv.Redis(t))
	if err != nil {
		t.Fatal(err)
	}
	admin, err := queue.Connect(server.String())
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close() //nolint:errcheck // nothing is pending on it
	if err := admin.Do(t.Context(), "ACL", "SETUSER", "passbook", "on", ">acl-password", "~*", "&*", "+@all").Err(); err != nil {
		t.Fatal(err)
	}
	for name, address := range map[string]string{
		"ACLUser":         fmt.Sprintf("redis://passbook:acl-password@%s/1", server.Host),
		"DatabaseInQuery": fmt.Sprintf("redis://%s@%s?db=2", server.User, server.Host),
		"Parameters":      fmt.Sprintf("redis://%s@%s/3?protocol=2&pool_size=5", server.User, server.Host),
	} {
		t.Run(name, func(t *testing.T) {
			client, err := queue.Connect(address)
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close() //nolint:errcheck // nothing is pending on it
			own := strings.ToLower(name)
			if _, err := asynq.NewClientFromRedisClient(client).Enqueue(asynq.NewTask("test", nil), asynq.Queue(own)); err != nil {
				t.Fatal(err)
			}
			answer := httptest.NewRecorder()
			dashboard(client).ServeHTTP(answer, httptest.NewRequestWithContext(t.Context(), http.MethodGet, dashboardPath+"/api/queues", nil))
			if answer.Code != http.StatusOK || strings.Count(answer.Body.String(), `"queue":`) != 1 ||
				!strings.Contains(answer.Body.String(), `"queue":"`+own+`"`) {
				t.Errorf("%d %s", answer.Code, answer.Body)
			}
		})
	}
}
