// Runs the README's first deposit with the client that openapi-typescript makes of
// openapi.yaml: node quickstart.js http://127.0.0.1:8080
import createClient from 'openapi-fetch';
import type { paths } from './openapi.js';

declare const process: { argv: string[] };
const baseUrl = process.argv[2];
if (!baseUrl) throw new Error('usage: node quickstart.js URL');

const pollTries = 300; // of pollWait each, for a loaded machine
const pollWait = 200; // ms

const api = createClient<paths>({ baseUrl });

// Every refusal of the API, and of a proxy before it, ends the program.
api.use({
  async onResponse({ request, response }) {
    if (!response.ok) throw new Error(`${request.method} ${request.url}: ${response.status} ${await response.text()}`);
  },
});

function answered<T>({ data }: { data?: T }): T {
  if (data === undefined) throw new Error('no body');
  return data;
}

function expect(what: string, got: unknown, want: unknown) {
  if (got !== want) throw new Error(`${what}: got ${got}, want ${want}`);
  console.log(`${what}: ${got}`);
}

async function finished(id: string) {
  for (let tries = 0; tries < pollTries; tries++) {
    const job = answered(await api.GET('/v1/jobs/{id}', { params: { path: { id } } }));
    if (job.status !== 'queued') return job;
    await new Promise((resolve) => setTimeout(resolve, pollWait));
  }
  throw new Error(`job ${id} is still queued`);
}

const credentials = { email: `ann-${crypto.randomUUID()}@example.com`, password: 'correct horse battery' };
const user = answered(await api.POST('/v1/users', { body: credentials }));
expect('user', user.email, credentials.email);
const tokens = answered(await api.POST('/v1/sessions', { body: credentials }));
api.use({
  onRequest({ request }) {
    request.headers.set('Authorization', `${tokens.token_type} ${tokens.access_token}`);
  },
});

const account = answered(await api.POST('/v1/accounts', { body: { initial_deposit: 10000 } }));
const path = { number: account.number };
expect('balance at first', account.balance, 10000);

// A deposit of 2,500; the same again is the same job.
const deposit = {
  params: { path, header: { 'Idempotency-Key': `salary-${account.number}` } },
  body: { amount: 2500, description: 'salary' },
};
const asked = answered(await api.POST('/v1/accounts/{number}/deposits', deposit));
expect('the same job', answered(await api.POST('/v1/accounts/{number}/deposits', deposit)).id, asked.id);
const deposited = await finished(asked.id);
if (deposited.status !== 'succeeded') throw new Error(`the deposit ${deposited.status}`);
expect('balance after the deposit', deposited.transaction.balance_after, 12500);

// Too much to withdraw.
const withdrawal = answered(
  await api.POST('/v1/accounts/{number}/withdrawals', {
    params: { path, header: { 'Idempotency-Key': `car-${account.number}` } },
    body: { amount: 1000000 },
  }),
);
const refused = await finished(withdrawal.id);
if (refused.status !== 'rejected') throw new Error(`the withdrawal ${refused.status}`);
expect('failure of the withdrawal', refused.failure.code, 'insufficient_funds');
// @ts-expect-error A rejected job has no transaction: the compiler knows it.
expect('transaction of the withdrawal', refused.transaction?.seq, undefined);

// The history in pages of one, the jobs, and the balance at a time.
const seqs: number[] = [];
let cursor: string | undefined;
do {
  const page = answered(
    await api.GET('/v1/accounts/{number}/transactions', { params: { path, query: { order: 'asc', limit: 1, cursor } } }),
  );
  if (typeof page === 'string') throw new Error('an export instead of a page');
  seqs.push(...page.data.map((transaction) => transaction.seq));
  cursor = page.next_cursor ?? undefined;
} while (cursor);
expect('history', seqs.join(), '1,2');
const jobs = answered(await api.GET('/v1/accounts/{number}/jobs', { params: { path, query: { order: 'asc' } } }));
expect('jobs', jobs.data.map((job) => job.status).join(), 'succeeded,rejected');
const csv = answered(
  await api.GET('/v1/accounts/{number}/transactions', { params: { path }, headers: { Accept: 'text/csv' }, parseAs: 'text' }),
);
expect('lines of the export', csv.trim().split(/\r?\n/).length, 3);
const before = answered(
  await api.GET('/v1/accounts/{number}/balance', { params: { path, query: { at: '2026-01-01T00:00:00Z' } } }),
);
expect('balance before the account', before.balance, 0);
const now = answered(await api.GET('/v1/accounts/{number}', { params: { path } }));
expect('balance now', now.balance, 12500);

await api.POST('/v1/sessions/revoke', { body: { refresh_token: tokens.refresh_token } });
