package event

// ReadSQL is what Read runs.
var ReadSQL = readSQL
