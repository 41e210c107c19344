package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/passbook/passbook/internal/boot"
	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/job"
	"github.com/passbook/passbook/internal/queue"
)

// stuckAfter is how old the oldest queued job of a partition may be. The sweep looks twice a
// second, and repairs what it finds within a few seconds.
const stuckAfter = 10 * time.Second

type queuesCommand struct{}

// depth is what Postgres knows of a partition.
type depth struct {
	jobs    int
	oldest  time.Duration
	account string // the number of the oldest job's account; empty where its row is missing
}

// Run shows a line for each partition. The depths come from Postgres, so they are right without
// Redis too.
func (queuesCommand) Run(i *invocation) error {
	pool, queues, client, err := i.openQueues()
	if err != nil {
		return err
	}
	defer pool.Close()
	defer client.Close() //nolint:errcheck // nothing is pending on it
	depths := make([]depth, queues.Partitions)
	err = job.Depths(i.ctx, pool, func(d job.Depth) {
		of := &depths[queue.Partition(d.AccountID, queues.Partitions)]
		of.jobs += d.Jobs
		if d.Oldest >= of.oldest {
			of.oldest, of.account = d.Oldest, d.Account
		}
	})
	if err != nil {
		return err
	}
	states, redisErr := queue.States(i.ctx, client, queues)
	if redisErr != nil {
		states = make([]queue.State, queues.Partitions)
	}
	table := i.table("QUEUE\tJOBS\tOLDEST\tPENDING\tACTIVE\tRETRY\tARCHIVED\tNOTIFIED\tPAUSED\tWORKER\tSTATE")
	total := 0
	for partition, s := range states {
		d := depths[partition]
		total += d.jobs
		table.row("%s\t%d\t%s\t%d\t%d\t%d\t%d\t%d\t%t\t%s\t%s\n", queues.Name(partition), d.jobs, d.oldest.Round(time.Millisecond),
			s.Pending, s.Active, s.Retry, s.Archived, s.Notified, s.Paused, dash(s.Worker), condition(d, s, redisErr))
	}
	if err := table.end(); err != nil {
		return err
	}
	i.say("%d jobs are queued", total)
	if redisErr != nil {
		return fmt.Errorf("the tasks can't be read from Redis; the jobs above are read from Postgres: %w", redisErr)
	}
	return nil
}

// condition says what is wrong with a partition.
func condition(d depth, s queue.State, redisErr error) string {
	var wrong []string
	switch {
	case redisErr != nil:
		wrong = append(wrong, "unknown: Redis does not answer")
	case s.Paused:
		wrong = append(wrong, "paused")
	case s.Worker == "":
		wrong = append(wrong, "no worker")
	}
	if s.Lost > 0 {
		wrong = append(wrong, fmt.Sprintf("stuck: %d tasks of workers that are gone", s.Lost))
	}
	if d.oldest > stuckAfter && len(wrong) == 0 {
		wrong = append(wrong, fmt.Sprintf("stuck: ask `worker accounts show %s` what it waits for", dash(d.account)))
	}
	if len(wrong) == 0 {
		return "ok"
	}
	return strings.Join(wrong, ", ")
}

func dash(text string) string {
	if text == "" {
		return "-"
	}
	return text
}

// openQueues opens the database and Redis for a command. It does not wait for Redis.
func (i *invocation) openQueues() (*pgxpool.Pool, queue.Queues, redis.UniversalClient, error) {
	cfg, err := config.LoadQueues(i.getenv)
	if err != nil {
		return nil, queue.Queues{}, nil, err
	}
	client, err := queue.Connect(cfg.RedisURL)
	if err != nil {
		return nil, queue.Queues{}, nil, err
	}
	pool, err := boot.OpenForOperator(i.ctx, cfg.DatabaseURL)
	if err != nil {
		_ = client.Close() // it has no connection yet
		return nil, queue.Queues{}, nil, err
	}
	return pool, queue.Queues{Prefix: cfg.QueuePrefix, Partitions: cfg.Partitions}, client, nil
}
