package statement

// Query is the statement that List runs for a page.
func (p Page) Query() (sql string, args []any) { return p.query() }

// AsLongAsItTakesSQL is what an export begins its transaction with.
const AsLongAsItTakesSQL = asLongAsItTakesSQL
