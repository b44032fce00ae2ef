-- The traces of the calls of a batch, and estimates in US dollars as decimal numbers; ''
-- if not known. Processes of version 2 that run meanwhile continue, and store neither:
-- their statements name the columns.
alter table batches
    add column traces  text not null default '',
    add column cost    text not null default '',
    add column savings text not null default '';
