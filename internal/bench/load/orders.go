// Package load asks an api, or the peer, for deposits and withdrawals over
// connections that stay open, and times the responses. It shares the machine with
// what it measures, so it spends as little as it can.
package load

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/uuid"
)

// ZipfExponent is the exponent of Zipf's law in skewed loads.
const ZipfExponent = 1.1

// Order is one deposit or withdrawal to ask for.
type Order struct {
	account    int
	withdrawal bool // every third
	key        string
}

// Random returns the random source for the orders of a round. It is the same for
// every part of the round.
func Random(round int) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(round), 0)) //nolint:gosec // which account is no secret
}

// EvenOrders returns n orders over the first accounts, each account as likely.
func EvenOrders(random *rand.Rand, n, accounts int) []Order {
	return makeOrders(n, func() int { return random.IntN(accounts) })
}

// ZipfOrders returns n orders over the first accounts. Account k is (k+1)^s times less
// likely than account 0: of 10,000 accounts, account 0 gets one order in seven, and
// the first hundred accounts get two in three.
func ZipfOrders(random *rand.Rand, n, accounts int) []Order {
	zipf := rand.NewZipf(random, ZipfExponent, 1, uint64(accounts-1)) //nolint:gosec // a count
	return makeOrders(n, func() int { return int(zipf.Uint64()) })    //nolint:gosec // less than accounts
}

func makeOrders(n int, account func() int) []Order {
	orders := make([]Order, n)
	for i := range orders {
		orders[i] = Order{account: account(), withdrawal: i%3 == 2, key: uuid.NewString()}
	}
	return orders
}

// WithNewKeys returns the same orders under new idempotency keys.
func WithNewKeys(orders []Order) []Order {
	renewed := slices.Clone(orders)
	for i := range renewed {
		renewed[i].key = uuid.NewString()
	}
	return renewed
}

// Evenly returns when each of n orders is due at a rate, in orders a second.
func Evenly(n int, rate float64) []time.Duration {
	due := make([]time.Duration, n)
	for i := range due {
		due[i] = time.Duration(float64(i) / rate * float64(time.Second))
	}
	return due
}

// InSlices returns the same times, each moved to the end of its slice, so that orders become due
// together.
func InSlices(due []time.Duration, slice time.Duration) []time.Duration {
	moved := make([]time.Duration, len(due))
	for i, at := range due {
		moved[i] = (at + slice - 1).Truncate(slice)
	}
	return moved
}

// AccountNumber is the number of the n-th account. All numbers have the same length.
func AccountNumber(n int) string {
	return fmt.Sprintf("BENCH-%05d", n)
}
