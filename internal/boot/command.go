package boot

import (
	"errors"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/alecthomas/kong"

	"github.com/passbook/passbook/migrations"
)

// ErrUsage is returned for a command line that can't be read.
var ErrUsage = errors.New("usage")

// exitUsage is the exit code of a command line that can't be read; 1 is that of a command that
// failed.
const exitUsage = 2

// Command reads the command line of a program. commands is a struct whose tags describe the
// commands, as kong reads them. It returns nil where the command line asked for help or for the
// version, which Command has written to stdout. ErrUsage for a command line that can't be read.
func Command(name, description string, commands any, args []string, stdout, stderr io.Writer) (*kong.Context, error) {
	answered := false // help or the version: kong goes on after Exit, and its error then means nothing
	parser, err := kong.New(
		commands,
		kong.Name(name), kong.Description(description),
		kong.Writers(stdout, stderr),
		kong.Vars{"version": version(name)},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.Exit(func(int) { answered = true }),
	)
	if err != nil {
		return nil, err
	}
	command, err := parser.Parse(args)
	switch {
	case answered:
		return nil, nil //nolint:nilnil // there is nothing to run
	case err != nil:
		return nil, fmt.Errorf("%w: %w; see %s --help", ErrUsage, err, name)
	}
	return command, nil
}

// version names the build: the release or the commit, the schema that it needs, and its Go.
func version(name string) string {
	release := "unknown"
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return name + " " + release
	}
	if info.Main.Version != "" {
		release = info.Main.Version
	}
	schema, _ := migrations.Version() // of files that are part of the build
	return fmt.Sprintf("%s %s, schema version %d, %s", name, release, schema, info.GoVersion)
}
