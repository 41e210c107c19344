package scaling

import "github.com/passbook/passbook/internal/bench/report"

// catalogue is every figure of `make scaling`, in the order of its table.
func catalogue() []report.Figure {
	const micros, bytes, kB = "µs/job", "bytes/job", "kB"
	var all []report.Figure
	for _, c := range cells {
		add := func(name, label, unit string) {
			all = append(all, report.Figure{Part: c.name, Name: name, Label: label, Unit: unit})
		}
		add("applied", "applied", report.JobsPerSec)
		if c.name != plain {
			add("speed", "applied / that of the first row", "")
			add("more", "more CPU than in the first row", micros)
		}
		for _, process := range processes {
			add("cpu-"+process, "CPU of "+process, micros)
		}
		add("rest", "at rest, all processes", "% of a core")
		add("connections-postgres", "connections to Postgres", "")
		add("connections-redis", "connections to Redis", "")
		add("memory-api", "peak memory of an api", "MB")
		add("memory-worker", "peak memory of a worker", "MB")
	}
	return append(all,
		report.Figure{Part: "hot", Name: "applied", Label: "applied, one account", Unit: report.JobsPerSec},
		report.Figure{Part: "paced", Name: "cpu-full", Label: "CPU of all processes at full speed", Unit: micros},
		report.Figure{Part: "paced", Name: "cpu", Label: "the same at 60 % of that rate", Unit: micros},
		report.Figure{Part: "job", Name: "log-records", Label: "Postgres's log, records", Unit: bytes},
		report.Figure{Part: "job", Name: "log-pages", Label: "Postgres's log, whole pages just after a checkpoint", Unit: bytes},
		report.Figure{Part: "job", Name: "flushes", Label: "flushes of Postgres's log", Unit: "a job"},
		report.Figure{Part: "job", Name: "kept", Label: "kept on disk, with indexes", Unit: bytes},
		report.Figure{Part: "job", Name: "trips-postgres", Label: "round trips to Postgres", Unit: "a job"},
		report.Figure{Part: "job", Name: "to-postgres", Label: "to Postgres", Unit: bytes},
		report.Figure{Part: "job", Name: "from-postgres", Label: "from Postgres", Unit: bytes},
		report.Figure{Part: "job", Name: "trips-redis", Label: "round trips to Redis", Unit: "a job"},
		report.Figure{Part: "job", Name: "commands-redis", Label: "commands of Redis", Unit: "a job"},
		report.Figure{Part: "job", Name: "to-redis", Label: "to Redis", Unit: bytes},
		report.Figure{Part: "job", Name: "from-redis", Label: "from Redis", Unit: bytes},
		report.Figure{Part: "job", Name: "connection", Label: "memory of a connection, in Postgres", Unit: kB},
		report.Figure{Part: "held", Name: "queued", Label: "Redis's memory of a queued job", Unit: bytes},
		report.Figure{Part: "held", Name: "stream", Label: "api's memory of an event stream", Unit: kB},
		report.Figure{Part: "held", Name: "waiting", Label: "api's memory of a request that waits", Unit: kB},
	)
}
