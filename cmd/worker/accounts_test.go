package main

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/passbook/passbook/internal/ledger"
	"github.com/passbook/passbook/internal/queue"
)

// What keeps an account's job from being applied is said in one sentence, the likeliest cause first.
func TestWaitsFor(t *testing.T) {
	t.Parallel()
	oldest := &ledger.OverviewJob{Age: time.Second}
	served := queue.State{Worker: "host/1/a"}
	for _, test := range []struct {
		want     string
		view     ledger.Overview
		state    queue.State
		redisErr error
	}{
		{"nothing", ledger.Overview{}, queue.State{Paused: true}, nil},
		{"Postgres process 7 has held for 2s (psql, idle in transaction)", ledger.Overview{
			Oldest: oldest, Lock: &ledger.OverviewLock{PID: 7, Application: "psql", State: "idle in transaction", Age: 2 * time.Second},
		}, served, nil},
		{"attempt 3 of 5", ledger.Overview{Oldest: &ledger.OverviewJob{Attempts: 2}}, served, nil},
		{"Redis does not answer (gone)", ledger.Overview{Oldest: oldest}, queue.State{}, errors.New("gone")},
		{"a worker: none is running", ledger.Overview{Oldest: oldest}, queue.State{Pending: 1}, nil},
		{"which is paused", ledger.Overview{Oldest: oldest}, queue.State{Worker: "w", Paused: true, Pending: 1}, nil},
		{"the worker that had its task is gone", ledger.Overview{Oldest: oldest}, queue.State{Worker: "w", Active: 1, Lost: 1}, nil},
		{"worker w handles 1 tasks, and 4 are pending", ledger.Overview{Oldest: oldest}, queue.State{Worker: "w", Active: 1, Pending: 4}, nil},
		{"0 are pending; 1 more wait to be tried again", ledger.Overview{Oldest: oldest}, queue.State{Worker: "w", Retry: 1}, nil},
		{"and 2 notifications to be taken", ledger.Overview{Oldest: oldest}, queue.State{Worker: "w", Notified: 2}, nil},
		{"its task is lost", ledger.Overview{Oldest: oldest}, served, nil},
	} {
		if got := waitsFor(test.view, test.state, test.redisErr); !strings.Contains(got, test.want) {
			t.Errorf("waits for %q, want %q", got, test.want)
		}
	}
}

// A partition is said to be stuck, paused or without a worker.
func TestCondition(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		want     string
		depth    depth
		state    queue.State
		redisErr error
	}{
		{"ok", depth{jobs: 9, oldest: time.Second}, queue.State{Worker: "w"}, nil},
		{"stuck: ask `worker accounts show ANN-7`", depth{jobs: 9, oldest: time.Minute, account: "ANN-7"}, queue.State{Worker: "w"}, nil},
		{"paused", depth{jobs: 9, oldest: time.Minute}, queue.State{Worker: "w", Paused: true}, nil},
		{"no worker", depth{}, queue.State{}, nil},
		{"no worker, stuck: 2 tasks", depth{}, queue.State{Lost: 2}, nil},
		{"unknown: Redis", depth{}, queue.State{}, errors.New("gone")},
	} {
		if got := condition(test.depth, test.state, test.redisErr); !strings.HasPrefix(got, test.want) {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
