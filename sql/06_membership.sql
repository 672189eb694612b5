-- Changes of members, as far as a cluster of one node goes: what is refused, and the way back to an ordinary instance.

-- what_cannot_be_is_refused
SELECT quorum.remove_node('n1');
SELECT quorum.remove_node('nobody');
SELECT quorum.transfer_leadership('nobody');
SELECT quorum.transfer_leadership('n1');
SELECT quorum.transfer_leadership();
SELECT quorum.request_removal(99);
BEGIN;
SELECT quorum.leave_cluster();
ROLLBACK;
SELECT node_name, is_voter, as_voter FROM quorum.nodes;

-- the_last_node_leaves_and_its_tables_are_ordinary
CREATE TABLE kept (id int PRIMARY KEY, v text);
INSERT INTO kept VALUES (1, 'before');
SELECT quorum.replicate('kept');
INSERT INTO kept VALUES (2, 'replicated');
SET client_min_messages = warning;	-- it says where the journal is
SELECT quorum.leave_cluster();
RESET client_min_messages;
SELECT node_name, role, chosen_index, applied_index, last_error FROM quorum.status;
SELECT count(*) FROM quorum.nodes;
SELECT count(*) FROM quorum.tables;
SELECT applied_index FROM quorum.position;
SELECT count(*) FROM pg_trigger WHERE tgrelid = 'kept'::regclass AND NOT tgisinternal;
INSERT INTO kept VALUES (3, 'ordinary');
SELECT * FROM kept ORDER BY id;
SELECT quorum.leave_cluster();
SELECT quorum.remove_node('n1');

-- it_can_be_the_first_of_another_cluster
SELECT format('host=%s port=%s dbname=%s', current_setting('unix_socket_directories'), current_setting('port'), current_database()) AS own_conninfo
\gset
SELECT quorum.create_cluster('again', :'own_conninfo');
SELECT quorum.replicate('kept');
UPDATE kept SET v = v || '!';
SELECT * FROM kept ORDER BY id;
SELECT node_name, role, voters, last_error FROM quorum.status;
SELECT log_index, kind FROM quorum.log_entries(1, 2);
DROP TABLE IF EXISTS nothing;
SELECT quorum.unreplicate('kept');
DROP TABLE kept;
