-- No owner of the old version is alive: Open checks that before this step. The
-- lines of the dead owners are open because their owners are not in the table.
delete from owners;

-- An owner that dies is deleted from owners, and nothing else changes: a batch or
-- line is open if its owner is not in owners. 0 is never in owners. Ids of owners
-- are not used again.
alter table batches rename column payer to account;
alter table batches alter column ref drop not null; -- null: being deleted
alter table batches add column large boolean not null default false; -- runs index the lines
update batches set owner = 0 where owner is null;
alter table batches alter column owner set default 0, alter column owner set not null;

drop index open_lines;
update lines set owner = 0 where owner is null;
alter table lines alter column owner set not null;
alter table lines rename column print to fingerprint;
alter table lines alter column fingerprint drop not null; -- null in a large batch
alter table lines add column response_id text; -- null: none

-- How many lines of a batch an owner holds, or held when it died. Rows of 0 lines
-- are deleted sooner or later.
create table holds (
    owner bigint  not null,
    large boolean not null, -- as in batches
    batch bigint  not null,
    lines bigint  not null check (lines >= 0),
    primary key (owner, large, batch)
) with (fillfactor = 70);

insert into holds
    select owner, false, batch, count(*) from lines group by owner, batch;

-- The fingerprints of large batches; see package runs.
create table runs (
    batch   bigint not null,
    "first" bigint not null, -- the first four bytes
    entries bytea  not null,
    primary key (batch, "first")
);
alter table runs alter column entries set storage external; -- fingerprints do not compress

create index lines_fingerprint on lines (fingerprint, batch, n) where fingerprint is not null;
create index holds_batch on holds (batch);
create index batches_running on batches (owner) where state <> 'ended' and ref is not null;
create index batches_ended on batches (ended) where ended is not null;
create index batches_began on batches (began);
create index batches_unfinished on batches (id) where ref is null;
