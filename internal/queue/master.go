package queue

import (
	"context"
	"sync"

	"github.com/redis/go-redis/v9"
)

// eachMaster calls do for the partitions of each master of a cluster, for all masters at once, and
// waits. Without a cluster it calls do once.
//
// One pipeline for all partitions would fail for all of them while this process does not reach one
// master: go-redis tries that master's commands again, and when the context ends meanwhile, every
// command of the pipeline gets its error.
func eachMaster(ctx context.Context, client redis.UniversalClient, queues Queues, partitions []int, do func(some []int)) {
	cluster, ok := client.(*redis.ClusterClient)
	if !ok {
		do(partitions)
		return
	}
	masters := map[*redis.Client][]int{}
	for _, partition := range partitions {
		master, err := cluster.MasterForKey(ctx, queues.pending(partition))
		if err != nil {
			master = nil // do has the same error
		}
		masters[master] = append(masters[master], partition)
	}
	var calls sync.WaitGroup
	for _, some := range masters {
		calls.Go(func() { do(some) })
	}
	calls.Wait()
}
