package migrations_test

import (
	"bytes"
	"flag"
	"os"
	"os/exec"
	"regexp"
	"testing"

	"github.com/passbook/passbook/internal/test/testenv"
)

var write = flag.Bool("write", false, "write schema.sql in place of comparing it")

const schemaFile = "schema.sql"

// schemaHead says what the file is.
const schemaHead = `-- The schema as it is after all migrations, to read. make schema writes it with pg_dump;
-- nothing runs it. The reasons stand in the migrations, beside what they create.

`

// schema.sql is what pg_dump says of a database that has all migrations.
func TestSchemaFile(t *testing.T) {
	t.Parallel()
	got := dumpSchema(t)
	if *write {
		if err := os.WriteFile(schemaFile, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(schemaFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s is not the schema after all migrations: run make schema", schemaFile)
	}
}

// notSchema matches the lines of a dump that say something of the server, of pg_dump or of
// the session that restores it.
var notSchema = regexp.MustCompile(`(?m)^(--.*|SET .*;|SELECT pg_catalog\.set_config\(.*\);|\\(un)?restrict .*)\n`)

var blankLines = regexp.MustCompile(`\n{3,}`)

func dumpSchema(t *testing.T) []byte {
	t.Helper()
	server := testenv.PostgresServer(t)
	dump := exec.CommandContext(t.Context(), server.Program("pg_dump"),
		"--schema-only", "--no-owner", "--exclude-table=passbook_schema_version*", server.URL())
	var stderr bytes.Buffer
	dump.Stderr = &stderr
	text, err := dump.Output()
	if err != nil {
		t.Fatalf("pg_dump: %v\n%s", err, &stderr)
	}
	text = notSchema.ReplaceAll(text, nil)
	text = blankLines.ReplaceAll(text, []byte("\n\n"))
	return append([]byte(schemaHead), append(bytes.TrimSpace(text), '\n')...)
}
