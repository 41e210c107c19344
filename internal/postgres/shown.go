package postgres

import (
	"context"
	"math"

	"github.com/jackc/pgx/v5"
)

// Life is a stretch in which a server loses nothing of what it has shown: it ends with a
// crash, a failover and a restore. A transaction id names the same transaction all through
// it. SecureSession learns it for each connection, which never outlives it.
type Life struct {
	History string // the system's identifier and the timeline
	Start   string // of the server, and of the counters that a crash sets back
}

// lifeKey is where a connection keeps its Life.
const lifeKey = "passbook.life"

// lifeOf is zero for a connection that SecureSession has not seen, and for none.
func lifeOf(conn *pgx.Conn) Life {
	if conn == nil {
		return Life{}
	}
	life, _ := conn.PgConn().CustomData()[lifeKey].(Life)
	return life
}

// HistorySQL is a server's Life.History. The timeline of a standby is that of its last
// checkpoint: after a failover it may be an old one for a while, never a later one.
const HistorySQL = `(SELECT system_identifier FROM pg_control_system()) || '/' ||
	CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
		ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int
	END`

// startSQL is its Life.Start. Where one process of the server is killed, the others end and
// begin again under a postmaster that stays: only the counters, which a crash sets back, tell.
// An operator may set them back too; then the connections of before and after distrust each
// other until they are renewed.
const startSQL = `extract(epoch FROM pg_postmaster_start_time()) || '/' ||
	coalesce(extract(epoch FROM pg_stat_get_bgwriter_stat_reset_time())::text, '')`

// ShownSQL is how a statement says what it shows: with the last two columns of each row, of
// which the first is the row's xmin, null for a row that needs no confirmation. Showing reads
// them. The second is the id that no transaction in the statement's snapshot has reached.
const ShownSQL = `(SELECT pg_snapshot_xmax(pg_current_snapshot()))`

// Shown is what an answer shows: rows, of which the newest decides whether it has to be
// confirmed, and the life in which they were read. It belongs to one request.
type Shown struct {
	before Life   // that was confirmed last when the request began
	told   bool   // some read has told what it shows
	torn   bool   // two reads were in two lives
	life   Life   // of the reads
	newest uint64 // the id of the newest transaction that wrote one of the rows; 0 for none
}

type shownKey struct{}

// WithShown is a context whose reads tell what they show.
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

// ShowNone tells that the answer shows nothing, or only what the request itself has
// committed with a flush.
func ShowNone(ctx context.Context) { shownIn(ctx).told = true }

// ShowAll tells that the answer says something by what it leaves out: all that there was
// when it was read has to be confirmed.
func ShowAll(ctx context.Context) { shownIn(ctx).add(math.MaxUint64) }

// Showing is scan for rows that end with a row's xmin and ShownSQL. It tells the context
// what they show, also where there is none: a statement must not say anything by leaving a
// row out, or the caller tells it with ShowAll.
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

// AddTo tells the context what s shows.
func (s *Shown) AddTo(ctx context.Context) { s.AddAs(ctx, s.life) }

// AddAs is AddTo for reads that count as those of another server's life.
func (s *Shown) AddAs(ctx context.Context, life Life) {
	to := shownIn(ctx)
	if s.told {
		to.read(life)
	}
	to.torn = to.torn || s.torn
	to.add(s.newest)
}

// Life is that of the reads so far.
func (s *Shown) Life() Life { return s.life }

func (s *Shown) read(life Life) {
	s.torn = s.torn || s.life != Life{} && s.life != life
	s.told, s.life = true, life
}

func (s *Shown) add(xid uint64) { s.newest = max(s.newest, xid) }

// firstNormal is the lowest id of a transaction. Those below it stand for rows that are
// older than any.
const firstNormal = 3

// widen is the transaction whose low 32 bits a row keeps, for a row that was visible when
// next was to come: the newest one that it can be. A frozen row may be older by a multiple
// of 2^32; it then counts as younger than it is, never as older. 0 for a row older than any.
func widen(xmin uint32, next uint64) uint64 {
	if xmin < firstNormal {
		return 0
	}
	back := uint64(uint32(next-1) - xmin) //nolint:gosec // modulo 2^32
	if back >= next {                     // no visible row is
		return math.MaxUint64
	}
	return next - 1 - back
}
