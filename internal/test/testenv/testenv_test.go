package testenv_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/test/testenv"
)

func TestMain(m *testing.M) { testenv.Main(m) }

func TestPool_HasTheSchemaAndIsTheTestsOwn(t *testing.T) {
	t.Parallel()
	first, second := testenv.Pool(t), testenv.Pool(t)
	const insert = `INSERT INTO users (id, email, email_key, password_hash) VALUES (gen_random_uuid(), 'a@example.com', 'a@example.com', 'x')`
	if _, err := first.Exec(t.Context(), insert); err != nil {
		t.Fatal(err)
	}
	var users int
	if err := second.QueryRow(t.Context(), `SELECT count(*) FROM users`).Scan(&users); err != nil {
		t.Fatal(err)
	}
	if users != 0 {
		t.Errorf("another test's database shows: %d users", users)
	}
}

func TestPostgres_IsDroppedAfterwards(t *testing.T) {
	t.Parallel()
	var url string
	t.Run("OK", func(t *testing.T) {
		url = testenv.Postgres(t)
		connect(t, url) // left open: the drop must not mind
	})
	if conn, err := pgx.Connect(t.Context(), url); err == nil {
		_ = conn.Close(t.Context())
		t.Error("the database is still there")
	}
}

func TestPostgresServer_ComesBackAfterACrash(t *testing.T) {
	t.Parallel()
	server := testenv.PostgresServer(t)
	if err := server.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := server.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	var users int
	if err := connect(t, server.URL()).QueryRow(t.Context(), `SELECT count(*) FROM users`).Scan(&users); err != nil {
		t.Fatal(err)
	}
}

func TestRedis_IsTheTestsOwn(t *testing.T) {
	t.Parallel()
	first, second := redisClient(t, testenv.Redis(t)), redisClient(t, testenv.Redis(t))
	if err := first.Set(t.Context(), "k", "v", 0).Err(); err != nil {
		t.Fatal(err)
	}
	if n, err := second.DBSize(t.Context()).Result(); n != 0 || err != nil {
		t.Errorf("another test's Redis shows: %d keys, %v", n, err)
	}
}

func TestEventually(t *testing.T) {
	t.Parallel()
	calls := 0
	testenv.Eventually(t, "three calls", func() bool { calls++; return calls == 3 })
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	return conn
}

func redisClient(t *testing.T, url string) *redis.Client {
	t.Helper()
	opt, err := redis.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	client := redis.NewClient(opt)
	t.Cleanup(func() { _ = client.Close() })
	return client
}
