package postgres

// AwaitFor is Await with another bound on how long a host may have no address.
var AwaitFor = await
