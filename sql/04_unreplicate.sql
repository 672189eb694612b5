-- Back to ordinary tables.

-- only_what_is_replicated
CREATE TABLE ordinary (id int PRIMARY KEY);
SELECT quorum.unreplicate('ordinary');

-- rolled_back_it_stays_replicated
BEGIN;
SELECT quorum.unreplicate('twice');
ROLLBACK;
SELECT table_name, state FROM quorum.tables WHERE table_name = 'twice';

-- afterwards_it_is_an_ordinary_table_with_its_rows
SELECT quorum.unreplicate('account');
SELECT count(*) FROM quorum.tables WHERE table_name = 'account';
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'account'::regclass AND NOT tgisinternal;
SELECT count(*) FROM account;
SELECT chosen_index AS before FROM quorum.status \gset
DELETE FROM account;
TRUNCATE account;
SELECT count(*) FROM quorum.log_entries(:before + 1);

-- and_can_be_replicated_again
INSERT INTO account (id, owner) VALUES (1, 'again');
SELECT quorum.replicate('account');
SELECT table_name, state, row_count FROM quorum.tables WHERE table_name = 'account';

-- a_begun_copy_is_forgotten
CREATE TABLE begun (id int PRIMARY KEY);
BEGIN;
SELECT quorum.replicate('begun');
ROLLBACK;
SELECT quorum.unreplicate('begun');
SELECT count(*) FROM quorum.tables WHERE table_name = 'begun';

-- what_references_it_goes_first
SELECT quorum.unreplicate('city');
SELECT quorum.unreplicate('street');
SELECT quorum.unreplicate('city');
SELECT table_name FROM quorum.tables ORDER BY table_name COLLATE "C";
