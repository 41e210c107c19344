// Package peer is the synchronous handler that Passbook is measured against. It is
// what a careful engineer would write who needs no queue: one handler, one
// transaction, a response with the finished job.
//
// It has the api's Fiber, JSON and JWT libraries, Passbook's tables with their
// indexes and constraints, the same rows in them, prepared statements and a pool
// that fits the machine. It checks less: no session, no key of an opening, no
// queue capacity, and nothing of a body beyond its two fields.
package peer

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"github.com/gofiber/fiber/v2"
	"github.com/golang-jwt/jwt/v5"
	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/passbook/passbook/internal/config"
	"github.com/passbook/passbook/internal/ledger"
)

// Settings are what a careful user would tune.
type Settings struct {
	Conns int  // to Postgres
	Apart bool // BEGIN and COMMIT each take a round trip of their own
}

// Default are the settings that the published figures are measured with.
var Default = Settings{Conns: 16}

// Register adds the settings to flags, under names that begin with prefix.
func (s *Settings) Register(flags *flag.FlagSet, prefix string) {
	flags.IntVar(&s.Conns, prefix+"conns", s.Conns, "the peer's connections to Postgres")
	flags.BoolVar(&s.Apart, prefix+"apart", s.Apart, "the peer sends BEGIN and COMMIT apart, as pgx's Begin and Commit do: four round trips, not two")
}

// Args are the arguments that give a peer these settings.
func (s *Settings) Args() []string {
	return []string{fmt.Sprintf("-conns=%d", s.Conns), fmt.Sprintf("-apart=%t", s.Apart)}
}

// ReadSettings reads the settings from a peer's arguments.
func ReadSettings(args []string) (Settings, error) {
	s := Default
	flags := flag.NewFlagSet("bench peer", flag.ContinueOnError)
	s.Register(flags, "")
	err := flags.Parse(args)
	return s, err
}

// peer serves deposits and withdrawals.
type peer struct {
	pool   *pgxpool.Pool
	apart  bool
	parser *jwt.Parser
	secret []byte
}

// Serve serves deposits and withdrawals until ctx ends. It writes its address to
// stdout once it is ready.
func Serve(ctx context.Context, cfg config.API, s Settings, stdout io.Writer) error {
	pool, err := openPool(ctx, cfg.DatabaseURL, s.Conns)
	if err != nil {
		return err
	}
	defer pool.Close()
	app := newPeer(pool, cfg.JWTKeys[0].Secret, s.Apart).app() //nolint:contextcheck // a request has its own
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", cfg.HTTPAddr)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = app.Shutdown() }) // an error comes out of Listener too
	defer stop()
	ready := map[string]string{"msg": "peer ready", "http_addr": listener.Addr().String()}
	if err := json.NewEncoder(stdout).Encode(ready); err != nil {
		return err
	}
	return app.Listener(listener)
}

// openPool opens a pool whose plans use indexes, as Passbook's do: Postgres keeps a
// plan that it made while a table was small.
func openPool(ctx context.Context, url string, conns int) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = int32(conns) //nolint:gosec // a handful
	cfg.ConnConfig.RuntimeParams["enable_seqscan"] = "off"
	cfg.ConnConfig.RuntimeParams["enable_bitmapscan"] = "off"
	return pgxpool.NewWithConfig(ctx, cfg)
}

func newPeer(pool *pgxpool.Pool, secret []byte, apart bool) *peer {
	return &peer{
		pool:  pool,
		apart: apart,
		parser: jwt.NewParser(jwt.WithValidMethods([]string{jwt.SigningMethodHS256.Alg()}),
			jwt.WithIssuer("passbook"), jwt.WithAudience("passbook"), jwt.WithExpirationRequired()),
		secret: secret,
	}
}

func (p *peer) app() *fiber.App {
	app := fiber.New(fiber.Config{DisableStartupMessage: true, StrictRouting: true, CaseSensitive: true})
	app.Post("/v1/accounts/:number/deposits", p.handle(ledger.Deposit))
	app.Post("/v1/accounts/:number/withdrawals", p.handle(ledger.Withdrawal))
	return app
}

// transfer is one request.
type transfer struct {
	user        uuid.UUID
	number      string
	entry       ledger.EntryType
	key         string
	Amount      int64   `json:"amount"` // minor units
	Description *string `json:"description"`
}

func (p *peer) handle(entry ledger.EntryType) fiber.Handler {
	return func(c *fiber.Ctx) error {
		user, err := p.caller(c)
		if err != nil {
			return fiber.ErrUnauthorized
		}
		request := transfer{user: user, number: c.Params("number"), entry: entry, key: c.Get("Idempotency-Key")}
		if err := c.BodyParser(&request); err != nil {
			return fiber.ErrBadRequest
		}
		if request.key == "" || request.Amount < 1 || request.Amount > ledger.MaxAmount {
			return fiber.ErrUnprocessableEntity
		}
		response, err := p.transfer(c.Context(), request)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return fiber.ErrNotFound
		case errors.Is(err, errInsufficientFunds):
			return fiber.NewError(fiber.StatusUnprocessableEntity, err.Error())
		case err != nil:
			return err
		}
		c.Location("/v1/jobs/" + response.ID.String())
		return c.Status(fiber.StatusCreated).JSON(response)
	}
}

// caller returns the user of the access token.
func (p *peer) caller(c *fiber.Ctx) (uuid.UUID, error) {
	token, found := strings.CutPrefix(c.Get(fiber.HeaderAuthorization), "Bearer ")
	if !found {
		return uuid.Nil, errors.New("no token")
	}
	var claims jwt.RegisteredClaims
	if _, err := p.parser.ParseWithClaims(token, &claims, func(*jwt.Token) (any, error) { return p.secret, nil }); err != nil {
		return uuid.Nil, err
	}
	return uuid.Parse(claims.Subject)
}

var errInsufficientFunds = errors.New("insufficient funds")

// finishedJob is the response. It is as long as the api's.
type finishedJob struct {
	ID          uuid.UUID        `json:"id"`
	Account     string           `json:"account"`
	Type        ledger.EntryType `json:"type"`
	Amount      int64            `json:"amount"`
	Currency    string           `json:"currency"`
	Description *string          `json:"description"`
	Status      string           `json:"status"`
	Failure     *string          `json:"failure"`
	Transaction *transaction     `json:"transaction"`
	CreatedAt   time.Time        `json:"created_at"`
	FinishedAt  time.Time        `json:"finished_at"`
}

type transaction struct {
	Seq          int64     `json:"seq"`
	BalanceAfter int64     `json:"balance_after"`
	CreatedAt    time.Time `json:"created_at"`
}

// transfer moves the balance in one transaction. For a key that was used before it
// returns the job of that key.
func (p *peer) transfer(ctx context.Context, request transfer) (response finishedJob, err error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return finishedJob{}, err
	}
	defer conn.Release()
	found, err := p.lock(ctx, conn, request)
	if err == nil {
		response, err = p.write(ctx, conn, request, found)
	}
	if err == nil {
		return response, nil
	}
	if _, rollbackErr := conn.Exec(ctx, "ROLLBACK"); rollbackErr != nil {
		return finishedJob{}, errors.Join(err, rollbackErr)
	}
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.ConstraintName == "jobs_key" {
		return p.replayed(ctx, conn, request)
	}
	return finishedJob{}, err
}

// locked is the account; its row lock keeps it so until the transaction ends.
type locked struct {
	id       int64
	currency string
	balance  int64
	lastSeq  int64
	at       time.Time // of the transaction that is written now
}

// lock begins the transaction and locks the caller's account.
func (p *peer) lock(ctx context.Context, conn *pgxpool.Conn, request transfer) (a locked, err error) {
	const sql = `
		SELECT id, currency, balance, last_seq, greatest(clock_timestamp(), last_at + interval '1 microsecond')
		FROM accounts WHERE number = $1 AND user_id = $2 FOR UPDATE`
	var batch pgx.Batch
	if p.apart {
		_, err = conn.Exec(ctx, "BEGIN")
	} else {
		batch.Queue("BEGIN")
	}
	if err != nil {
		return locked{}, err
	}
	batch.Queue(sql, request.number, request.user).QueryRow(func(row pgx.Row) error {
		return row.Scan(&a.id, &a.currency, &a.balance, &a.lastSeq, &a.at)
	})
	return a, conn.SendBatch(ctx, &batch).Close()
}

// write moves the balance, writes both rows and commits.
func (p *peer) write(ctx context.Context, conn *pgxpool.Conn, request transfer, a locked) (finishedJob, error) {
	const (
		moveSQL = `UPDATE accounts SET balance = $2, last_seq = $3, last_at = $4 WHERE id = $1`
		postSQL = `
			INSERT INTO transactions (account_id, seq, type, amount, balance_after, description, job_id, position, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, currval('job_positions'), $8)`
		jobSQL = `
			INSERT INTO jobs (id, account_id, user_id, idempotency_key, type, amount, description, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
	)
	after := a.balance + request.Amount
	if request.entry == ledger.Withdrawal {
		after = a.balance - request.Amount
	}
	if after < 0 {
		return finishedJob{}, errInsufficientFunds
	}
	id, err := uuid.NewV7()
	if err != nil {
		return finishedJob{}, err
	}
	seq := a.lastSeq + 1
	var batch pgx.Batch
	batch.Queue(moveSQL, a.id, after, seq, a.at)
	batch.Queue(jobSQL, id, a.id, request.user, request.key, request.entry, request.Amount, request.Description, a.at)
	batch.Queue(postSQL, a.id, seq, request.entry, request.Amount, after, request.Description, id, a.at)
	if !p.apart {
		batch.Queue("COMMIT")
	}
	err = conn.SendBatch(ctx, &batch).Close()
	if err == nil && p.apart {
		_, err = conn.Exec(ctx, "COMMIT")
	}
	return finishedJob{
		ID: id, Account: request.number, Type: request.entry, Amount: request.Amount, Currency: a.currency,
		Description: request.Description, Status: "succeeded",
		Transaction: &transaction{Seq: seq, BalanceAfter: after, CreatedAt: a.at}, CreatedAt: a.at, FinishedAt: a.at,
	}, err
}

// replayed returns the job that a key has made before.
func (p *peer) replayed(ctx context.Context, conn *pgxpool.Conn, request transfer) (j finishedJob, err error) {
	const sql = `
		SELECT job.id, account.number, job.type, job.amount, account.currency, job.description, job.status,
			job.seq, job.balance_after, job.created_at, job.finished_at
		FROM job_states job JOIN accounts account ON account.id = job.account_id
		WHERE job.user_id = $1 AND job.idempotency_key = $2`
	j.Transaction = &transaction{}
	err = conn.QueryRow(ctx, sql, request.user, request.key).Scan(&j.ID, &j.Account, &j.Type, &j.Amount, &j.Currency, &j.Description,
		&j.Status, &j.Transaction.Seq, &j.Transaction.BalanceAfter, &j.CreatedAt, &j.FinishedAt)
	j.Transaction.CreatedAt = j.FinishedAt
	if err == nil && (j.Account != request.number || j.Type != request.entry || j.Amount != request.Amount) {
		return finishedJob{}, fiber.NewError(fiber.StatusUnprocessableEntity, "key used for something else")
	}
	return j, err
}
