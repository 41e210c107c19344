package migrations

// UpFrom is Up with other migrations than this build's.
var UpFrom = up
