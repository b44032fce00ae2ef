-- No owner of the old version is alive: Open checks that before this step. The
-- lines of the dead owners are open because their owners are not in the table.
delete from owners;

-- Accounts and the dead. An owner that dies is deleted from owners, and nothing
-- else changes: a batch or line is open if its owner is not in owners. 0 is never
-- in owners. Ids of owners are not used again.
create table new_batches (
    id         integer primary key, -- in the order of Begin
    ref        text    unique,      -- null: a Begin or a deletion is not finished
    owner      integer not null,    -- owners.id of the owner that runs the batch
    account    blob    not null,
    upstream   text    not null,
    provider   text    not null,
    endpoint   text    not null,
    window     text    not null,
    models     text    not null,    -- JSON
    state      text    not null,
    input_file text    not null,
    batch_id   text    not null,
    status     text    not null,
    began      integer not null,
    created    integer not null,
    ended      integer not null,
    lines      integer not null,
    large      integer not null     -- 1: runs index the lines
) strict;

insert into new_batches
    select id, ref, coalesce(owner, 0), payer, upstream, provider, endpoint, window, models, state,
        input_file, batch_id, status, began, created, ended, lines, 0
    from batches;

-- The lines that were not delivered. Rows are appended in the order of the key,
-- which keeps Begin of a large batch cheap.
create table new_lines (
    id          integer primary key, -- batches.id << 32 | index of the line
    owner       integer not null,    -- owners.id of the holder
    fingerprint blob,                -- the first 16 bytes; null in a large batch
    custom_id   text    not null,
    response_id text                 -- null: none
) strict;

insert into new_lines
    select batch << 32 | n, coalesce(owner, 0), print, custom_id, null from lines order by batch, n;

-- How many lines of a batch an owner holds, or held when it died. Rows of 0 lines
-- are deleted.
create table holds (
    owner integer not null,
    large integer not null, -- as in batches
    batch integer not null,
    lines integer not null check (lines >= 0),
    primary key (owner, large, batch)
) strict, without rowid;

insert into holds
    select owner, 0, id >> 32, count(*) from new_lines group by owner, id >> 32;

-- The fingerprints of large batches; see package runs.
create table runs (
    id      integer primary key, -- batches.id << 32 | the first four bytes
    entries blob not null
) strict;

drop table lines;
drop table batches;
alter table new_batches rename to batches;
alter table new_lines rename to lines;

create index lines_fingerprint on lines (fingerprint) where fingerprint is not null;
create index holds_batch on holds (batch);
create index batches_running on batches (owner) where state <> 'ended' and ref is not null;
create index batches_ended on batches (ended) where ended > 0;
create index batches_began on batches (began);
create index batches_unfinished on batches (id) where ref is null;
