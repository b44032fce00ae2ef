-- Times are microseconds since 1970, 0 for never.

-- One row: the key that hashes are keyed with.
create table secret (
    key blob not null
) strict;

insert into secret values (randomblob(32));

-- Numbers are not used again: the lock files are named by them.
create table owners (
    id    integer primary key autoincrement,
    name  text    not null unique,
    heard integer not null, -- the last heartbeat
    until integer not null  -- the lease's end
) strict;

-- Numbered in the order in which they were begun.
create table batches (
    id         integer primary key,
    ref        text    not null unique,
    owner      integer,          -- owners.id of who carries it on; null: nobody
    payer      blob    not null,
    upstream   text    not null,
    provider   text    not null,
    endpoint   text    not null,
    window     text    not null,
    models     text    not null, -- JSON
    state      text    not null,
    input_file text    not null,
    batch_id   text    not null,
    status     text    not null,
    began      integer not null,
    created    integer not null,
    ended      integer not null,
    lines      integer not null
) strict;

-- The lines that were not delivered. They are written in the order of the key,
-- which is what makes a large batch cheap.
create table lines (
    batch     integer not null, -- batches.id
    n         integer not null,
    owner     integer,          -- owners.id of who holds it; null: open
    print     blob    not null, -- the first 16 bytes
    custom_id text    not null,
    primary key (batch, n)
) strict, without rowid;

-- A line enters this index only when its caller has gone, which few do.
create index open_lines on lines (print) where owner is null;
