package main

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

// The peer is what somebody would write who needs no queue, and writes it well:
// one handler, one transaction, an answer with the finished job. It has the api's
// Fiber, JSON and JWT libraries, Passbook's tables with their indexes and
// constraints, the same rows in them, prepared statements and a pool that fits the
// machine. It checks less: no session is looked up, no key of an opening, no bound
// on a queue, and what a body holds beyond its two fields.

// peerSettings are what a careful user would tune.
type peerSettings struct {
	conns int  // to Postgres
	apart bool // BEGIN and COMMIT each take a round trip of their own
}

var defaultPeer = peerSettings{conns: 16}

func (s *peerSettings) register(flags *flag.FlagSet, prefix string) {
	flags.IntVar(&s.conns, prefix+"conns", s.conns, "the peer's connections to Postgres")
	flags.BoolVar(&s.apart, prefix+"apart", s.apart, "the peer sends BEGIN and COMMIT apart, as pgx's Begin and Commit do: four round trips, not two")
}

func (s *peerSettings) args() []string {
	return []string{fmt.Sprintf("-conns=%d", s.conns), fmt.Sprintf("-apart=%t", s.apart)}
}

func readPeerSettings(args []string) (peerSettings, error) {
	s := defaultPeer
	flags := flag.NewFlagSet("bench peer", flag.ContinueOnError)
	s.register(flags, "")
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

func servePeer(ctx context.Context, cfg config.API, s peerSettings, stdout io.Writer) error {
	pool, err := openPeerPool(ctx, cfg.DatabaseURL, s.conns)
	if err != nil {
		return err
	}
	defer pool.Close()
	app := newPeer(pool, cfg.JWTKeys[0].Secret, s.apart).app() //nolint:contextcheck // a request has its own
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

// openPeerPool makes a pool whose plans go by index, as Passbook's do: one made
// while a table is small is kept when it has grown.
func openPeerPool(ctx context.Context, url string, conns int) (*pgxpool.Pool, error) {
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

// transfer is what one request asks for.
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
		asked := transfer{user: user, number: c.Params("number"), entry: entry, key: c.Get("Idempotency-Key")}
		if err := c.BodyParser(&asked); err != nil {
			return fiber.ErrBadRequest
		}
		if asked.key == "" || asked.Amount < 1 || asked.Amount > ledger.MaxAmount {
			return fiber.ErrUnprocessableEntity
		}
		answer, err := p.transfer(c.Context(), asked)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			return fiber.ErrNotFound
		case errors.Is(err, errInsufficientFunds):
			return fiber.NewError(fiber.StatusUnprocessableEntity, err.Error())
		case err != nil:
			return err
		}
		c.Location("/v1/jobs/" + answer.ID.String())
		return c.Status(fiber.StatusCreated).JSON(answer)
	}
}

// caller is whom the access token stands for.
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

// peerJob is the answer: as long as the api's.
type peerJob struct {
	ID          uuid.UUID        `json:"id"`
	Account     string           `json:"account"`
	Type        ledger.EntryType `json:"type"`
	Amount      int64            `json:"amount"`
	Currency    string           `json:"currency"`
	Description *string          `json:"description"`
	Status      string           `json:"status"`
	Failure     *string          `json:"failure"`
	Transaction *peerPosting     `json:"transaction"`
	CreatedAt   time.Time        `json:"created_at"`
	FinishedAt  time.Time        `json:"finished_at"`
}

type peerPosting struct {
	Seq          int64     `json:"seq"`
	BalanceAfter int64     `json:"balance_after"`
	CreatedAt    time.Time `json:"created_at"`
}

// transfer does it all in one transaction. A key that is there already is answered
// with its job.
func (p *peer) transfer(ctx context.Context, asked transfer) (answer peerJob, err error) {
	conn, err := p.pool.Acquire(ctx)
	if err != nil {
		return peerJob{}, err
	}
	defer conn.Release()
	found, err := p.lock(ctx, conn, asked)
	if err == nil {
		answer, err = p.write(ctx, conn, asked, found)
	}
	if err == nil {
		return answer, nil
	}
	if _, rollbackErr := conn.Exec(ctx, "ROLLBACK"); rollbackErr != nil {
		return peerJob{}, errors.Join(err, rollbackErr)
	}
	if refused, ok := errors.AsType[*pgconn.PgError](err); ok && refused.ConstraintName == "jobs_key" {
		return p.replayed(ctx, conn, asked)
	}
	return peerJob{}, err
}

// locked is the account, as it stays until the transaction ends.
type locked struct {
	id       int64
	currency string
	balance  int64
	lastSeq  int64
	at       time.Time // of what is posted now
}

// lock begins the transaction and locks the caller's account.
func (p *peer) lock(ctx context.Context, conn *pgxpool.Conn, asked transfer) (a locked, err error) {
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
	batch.Queue(sql, asked.number, asked.user).QueryRow(func(row pgx.Row) error {
		return row.Scan(&a.id, &a.currency, &a.balance, &a.lastSeq, &a.at)
	})
	return a, conn.SendBatch(ctx, &batch).Close()
}

// write moves the balance, writes both rows and commits.
func (p *peer) write(ctx context.Context, conn *pgxpool.Conn, asked transfer, a locked) (peerJob, error) {
	const (
		moveSQL = `UPDATE accounts SET balance = $2, last_seq = $3, last_at = $4 WHERE id = $1`
		postSQL = `
			INSERT INTO transactions (account_id, seq, type, amount, balance_after, description, job_id, created_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`
		jobSQL = `
			INSERT INTO jobs (id, account_id, user_id, idempotency_key, type, amount, description, status, seq, balance_after,
				created_at, finished_at)
			VALUES ($1, $2, $3, $4, $5, $6, $7, 'succeeded', $8, $9, $10, $10)`
	)
	after := a.balance + asked.Amount
	if asked.entry == ledger.Withdrawal {
		after = a.balance - asked.Amount
	}
	if after < 0 {
		return peerJob{}, errInsufficientFunds
	}
	id, err := uuid.NewV7()
	if err != nil {
		return peerJob{}, err
	}
	seq := a.lastSeq + 1
	var batch pgx.Batch
	batch.Queue(moveSQL, a.id, after, seq, a.at)
	batch.Queue(postSQL, a.id, seq, asked.entry, asked.Amount, after, asked.Description, id, a.at)
	batch.Queue(jobSQL, id, a.id, asked.user, asked.key, asked.entry, asked.Amount, asked.Description, seq, after, a.at)
	if !p.apart {
		batch.Queue("COMMIT")
	}
	err = conn.SendBatch(ctx, &batch).Close()
	if err == nil && p.apart {
		_, err = conn.Exec(ctx, "COMMIT")
	}
	return peerJob{
		ID: id, Account: asked.number, Type: asked.entry, Amount: asked.Amount, Currency: a.currency,
		Description: asked.Description, Status: "succeeded",
		Transaction: &peerPosting{Seq: seq, BalanceAfter: after, CreatedAt: a.at}, CreatedAt: a.at, FinishedAt: a.at,
	}, err
}

// replayed is the job that a key has made before.
func (p *peer) replayed(ctx context.Context, conn *pgxpool.Conn, asked transfer) (j peerJob, err error) {
	const sql = `
		SELECT job.id, account.number, job.type, job.amount, account.currency, job.description, job.status,
			job.seq, job.balance_after, job.created_at, job.finished_at
		FROM jobs job JOIN accounts account ON account.id = job.account_id
		WHERE job.user_id = $1 AND job.idempotency_key = $2`
	j.Transaction = &peerPosting{}
	err = conn.QueryRow(ctx, sql, asked.user, asked.key).Scan(&j.ID, &j.Account, &j.Type, &j.Amount, &j.Currency, &j.Description,
		&j.Status, &j.Transaction.Seq, &j.Transaction.BalanceAfter, &j.CreatedAt, &j.FinishedAt)
	j.Transaction.CreatedAt = j.FinishedAt
	if err == nil && (j.Account != asked.number || j.Type != asked.entry || j.Amount != asked.Amount) {
		return peerJob{}, fiber.NewError(fiber.StatusUnprocessableEntity, "key used for something else")
	}
	return j, err
}
