package postgres

import "time"

// AwaitFor is Await with another bound on how long a host may have no address.
var AwaitFor = await

// AdviceOfPooler says what to change about a pooler's message.
var AdviceOfPooler = adviceOfPooler

// Widen is the arithmetic of transaction ids.
var Widen = widen

// SetTimeout bounds the gate's confirmations. It must not run yet.
func (g *Gate) SetTimeout(timeout time.Duration) { g.timeout = timeout }
