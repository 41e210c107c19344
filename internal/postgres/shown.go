package postgres

import (
	"context"
	"math"

	"github.com/jackc/pgx/v5"
)

// ServerLife identifies a period in which a server loses nothing that it has shown. A crash, a
// failover or a restore ends it. Within a server life a transaction id always names the same
// transaction. SecureSession reads the server life for each connection; no connection outlives
// it, except one to a pooler, which has none.
type ServerLife struct {
	History string // the system identifier and the timeline
	Start   string // when the server started, and when a crash last reset its counters
}

// lifeKey is the key of a connection's ServerLife in its custom data.
const lifeKey = "passbook.life"

// lifeOf returns the connection's server life; zero for nil, for a connection to a pooler, and for
// one that SecureSession has not set up.
func lifeOf(conn *pgx.Conn) ServerLife {
	if conn == nil {
		return ServerLife{}
	}
	life, _ := conn.PgConn().CustomData()[lifeKey].(ServerLife)
	return life
}

// HistorySQL reads ServerLife.History. A standby has the timeline of its last checkpoint:
// after a failover it may be an older one for a while, never a later one.
const HistorySQL = `(SELECT system_identifier FROM pg_control_system()) || '/' ||
	CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
		ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int
	END`

// startSQL reads ServerLife.Start. If one process of the server is killed, the postmaster stays
// and restarts all others. Then its start time shows no crash, but the time of the last reset of
// the statistics does: a crash resets them. If an operator resets them, answers of older
// connections are not confirmed until those connections are replaced.
const startSQL = `extract(epoch FROM pg_postmaster_start_time()) || '/' ||
	coalesce(extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())::text, '')`

// lifeSQL reads a ServerLife.
const lifeSQL = HistorySQL + `, ` + startSQL

// ShownSQL is the last column of a statement that reports what it shows; the column before it
// is the row's xmin, null for a row that needs no confirmation. Showing reads both. ShownSQL is
// the id that no transaction in the statement's snapshot has reached.
const ShownSQL = `(SELECT pg_snapshot_xmax(pg_current_snapshot()))`

// Shown records what an answer shows: the newest row, which decides whether the answer needs a
// confirmation, and the server life of the reads. It belongs to one request.
type Shown struct {
	before   ServerLife // of the last confirmation when the request began
	reported bool       // a read has reported what it shows
	torn     bool       // the reads were in two server lives
	life     ServerLife // of the reads
	newest   uint64     // the id of the newest transaction that wrote one of the rows; 0 for none
}

type shownKey struct{}

// WithShown returns a context whose reads report what they show, and the record of it.
func WithShown(ctx context.Context) (context.Context, *Shown) {
	shown := &Shown{}
	return context.WithValue(ctx, shownKey{}, shown), shown
}

func shownIn(ctx context.Context) *Shown {
	if shown, ok := ctx.Value(shownKey{}).(*Shown); ok {
		return shown
	}
	return &Shown{}
}

// ShowNone reports that the answer shows no row, or only rows that the request itself has
// committed with a flush.
func ShowNone(ctx context.Context) { shownIn(ctx).reported = true }

// ShowAll reports that the answer also depends on rows that it does not show. So everything
// that was visible to the read has to be confirmed.
func ShowAll(ctx context.Context) { shownIn(ctx).add(math.MaxUint64) }

// Showing is scan for rows whose last two columns are a row's xmin and ShownSQL. It reports to
// the context what they show, also where there is no row. If the absence of a row has a
// meaning, the caller reports it with ShowAll.
func Showing[T any](ctx context.Context, rows pgx.Rows, scan pgx.RowToFunc[T]) pgx.RowToFunc[T] {
	shown := shownIn(ctx)
	shown.read(lifeOf(rows.Conn()))
	return func(row pgx.CollectableRow) (T, error) { return scan(shownRow{row, shown}) }
}

// shownRow is a row without its last two columns.
type shownRow struct {
	pgx.CollectableRow
	shown *Shown
}

const shownColumns = 2

func (r shownRow) RawValues() [][]byte {
	all := r.CollectableRow.RawValues()
	return all[:len(all)-shownColumns]
}

func (r shownRow) Scan(dest ...any) error {
	var xmin *uint32
	var next uint64
	if err := r.CollectableRow.Scan(append(dest, &xmin, &next)...); err != nil {
		return err
	}
	if xmin != nil {
		r.shown.add(widen(*xmin, next))
	}
	return nil
}

// AddTo reports to the context what s shows.
func (s *Shown) AddTo(ctx context.Context) { s.AddAs(ctx, s.life) }

// AddAs is AddTo, but the reads count as reads in the server life life.
func (s *Shown) AddAs(ctx context.Context, life ServerLife) {
	to := shownIn(ctx)
	if s.reported {
		to.read(life)
	}
	to.torn = to.torn || s.torn
	to.add(s.newest)
}

// Life is the server life of the reads so far.
func (s *Shown) Life() ServerLife { return s.life }

func (s *Shown) read(life ServerLife) {
	s.torn = s.torn || s.life != ServerLife{} && s.life != life
	s.reported, s.life = true, life
}

func (s *Shown) add(xid uint64) { s.newest = max(s.newest, xid) }

// firstNormal is the lowest id of a transaction. Lower ids mark rows that are older than any
// transaction.
const firstNormal = 3

// widen returns the 64-bit id of the transaction that wrote a row. The row keeps the low 32 bits
// of it, xmin; next is the next id when the row was visible. widen returns the newest id that
// fits both. A frozen row may be older, by a multiple of 2^32: it counts as newer than it is,
// never as older. It returns 0 for a row that is older than any transaction.
func widen(xmin uint32, next uint64) uint64 {
	if xmin < firstNormal {
		return 0
	}
	back := uint64(uint32(next-1) - xmin) //nolint:gosec // modulo 2^32
	if back >= next {                     // no visible row has such an id
		return math.MaxUint64
	}
	return next - 1 - back
}
