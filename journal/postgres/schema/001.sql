create table secret (
    key bytea not null
);

insert into secret
    select sha256(decode(replace(gen_random_uuid()::text || gen_random_uuid()::text, '-', ''), 'hex'));

create table owners (
    id    bigint generated always as identity primary key,
    name  text        not null unique,
    heard timestamptz not null, -- the last heartbeat
    until timestamptz not null  -- the lease's end
);

-- Numbered in the order in which they were begun.
create table batches (
    id         bigint generated always as identity primary key,
    ref        text        not null unique,
    owner      bigint,      -- owners.id of who carries it on; null: nobody
    payer      bytea       not null,
    upstream   text        not null,
    provider   text        not null,
    endpoint   text        not null,
    "window"   text        not null,
    models     text[],
    state      text        not null,
    input_file text        not null default '',
    batch_id   text        not null default '',
    status     text        not null default '',
    began      timestamptz not null default clock_timestamp(),
    created    timestamptz,
    ended      timestamptz,
    lines      integer     not null
);

-- The lines that were not delivered. There are no foreign keys: checking one for
-- each line would cost more than all the rest.
create table lines (
    batch     bigint  not null, -- batches.id
    n         integer not null,
    owner     bigint,           -- owners.id of who holds it; null: open
    print     bytea   not null, -- the first 16 bytes
    custom_id text    not null,
    primary key (batch, n)
);

-- A line enters this index only when its caller has gone, which few do.
create index open_lines on lines (print, batch, n) where owner is null;
