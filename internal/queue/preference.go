package queue

import (
	"context"
	"hash/fnv"
	"log/slog"
	"maps"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/redis/go-redis/v9"
)

const (
	// announceLife is how often a worker says that it is there, and forgetAfter when
	// one that no longer does is taken for dead.
	announceLife = 2 * time.Second
	forgetAfter  = 3 * announceLife
)

// workersKey names a sorted set of the workers that are there, by Redis's time of their
// last word, and a channel that tells when one comes or leaves. Nothing depends on it but who
// is woken.
func (q Queues) workersKey() string { return q.Prefix + ":workers" }

// preference spreads the partitions over the workers: each has one that is preferred,
// by rendezvous hashing (Thaler and Ravishankar, 1998), and alone is woken for its
// tickets. Were all, all but one would ask Redis twice for nothing
// (internal/bench/EXPERIMENTS.md), and with two at one line its tickets are half as
// large. The others look in from time to time, and so take what the preferred one is
// too busy for, or too dead.
type preference struct {
	client  redis.UniversalClient
	id      string
	queues  Queues
	log     *slog.Logger
	every   time.Duration                   // announceLife; tests wait longer
	others  atomic.Pointer[map[string]bool] // the lines for which another is preferred
	changed chan struct{}                   // holds one word that others are others now
	again   chan struct{}                   // holds one wish to look again
}

func newPreference(client redis.UniversalClient, queues Queues, log *slog.Logger) *preference {
	p := &preference{
		client: client, id: uuid.NewString(), queues: queues, log: log, every: announceLife,
		changed: make(chan struct{}, 1), again: make(chan struct{}, 1),
	}
	p.spread(nil)
	return p
}

// isOther tells whether another worker is preferred for a partition's line.
func (p *preference) isOther(line string) bool { return (*p.others.Load())[line] }

// run keeps it up to date until ctx ends, and then takes this worker's leave.
func (p *preference) run(ctx context.Context) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		workers, err := p.announce(ctx)
		if err != nil {
			p.log.Debug("don't know which workers are there", "error", err)
		}
		p.spread(workers)
		select {
		case <-tick.C:
		case <-p.again:
		case <-ctx.Done():
			p.leave(context.WithoutCancel(ctx))
			return
		}
	}
}

// announceScript says that a worker is there, by Redis's clock, for those of the
// workers may be wrong, and answers with all that are. What is dated ahead was
// written by another Redis's clock, before a failover.
var announceScript = redis.NewScript(`
local now = tonumber(redis.call("TIME")[1])
if redis.call("ZADD", KEYS[1], now, ARGV[1]) == 1 then redis.pcall("PUBLISH", KEYS[1], "came") end
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now - tonumber(ARGV[2]))
redis.call("ZREMRANGEBYSCORE", KEYS[1], now + 1, "+inf")
return redis.call("ZRANGE", KEYS[1], 0, -1)`)

func (p *preference) announce(ctx context.Context) ([]string, error) {
	if err := p.queues.Owner.Err(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, announceLife)
	defer cancel()
	return announceScript.Run(ctx, p.client, []string{p.queues.workersKey()}, p.id, int(forgetAfter.Seconds())).StringSlice()
}

func (p *preference) leave(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, ringTimeout)
	defer cancel()
	_, err := p.client.Pipelined(ctx, func(both redis.Pipeliner) error {
		both.ZRem(ctx, p.queues.workersKey(), p.id)
		both.Publish(ctx, p.queues.workersKey(), "left")
		return nil
	})
	if err != nil {
		p.log.Debug("leave without a word", "error", err)
	}
}

// spread finds the partitions that another of the workers is preferred for: none,
// where nobody is known.
func (p *preference) spread(workers []string) {
	others := map[string]bool{}
	for partition := range p.queues.Partitions {
		preferred, most := p.id, weight(p.id, partition)
		for _, worker := range workers {
			if w := weight(worker, partition); w > most {
				preferred, most = worker, w
			}
		}
		if preferred != p.id {
			others[p.queues.line(partition)] = true
		}
	}
	if before := p.others.Swap(&others); before == nil || !maps.Equal(*before, others) {
		tell(p.changed)
	}
}

// lookAgain asks for the workers that are there now: one has come or left.
func (p *preference) lookAgain() { tell(p.again) }

// tell puts a word where one is kept.
func tell(kept chan<- struct{}) {
	select {
	case kept <- struct{}{}:
	default: // there is one
	}
}

func weight(worker string, partition int) uint64 {
	hash := fnv.New64a()
	// The partition first: what comes last hardly moves the highest bits.
	_, _ = hash.Write(strconv.AppendInt(nil, int64(partition), 10)) // never fails
	_, _ = hash.Write([]byte(worker))
	return hash.Sum64()
}
