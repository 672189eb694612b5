-- The extension, the views of a node that is in no cluster, what create_cluster refuses, and the first node of a cluster.

-- creating_it_in_another_database_is_refused
CREATE DATABASE elsewhere;
\c elsewhere
CREATE EXTENSION pg_quorum;
\c contrib_regression
CREATE EXTENSION pg_quorum;

-- a_node_outside_a_cluster_says_so
SELECT * FROM quorum.status;
SELECT count(*) FROM quorum.nodes;
SELECT count(*) FROM quorum.tables;
SELECT count(*) FROM quorum.log;
SELECT transactions_committed, average_commit_wait FROM quorum.stats;
CREATE TABLE early (id int PRIMARY KEY);
SELECT quorum.replicate('early');
SELECT quorum.unreplicate('early');
SELECT * FROM quorum.request_membership('n2', 'host=nowhere', '1-1');
DROP TABLE early;

-- names_and_conninfos_are_checked
SELECT format('host=%s port=%s dbname=%s', current_setting('unix_socket_directories'), current_setting('port'), current_database()) AS own_conninfo,
       format('host=%s port=%s dbname=%s', current_setting('unix_socket_directories'), current_setting('port'), 'elsewhere') AS elsewhere
\gset
SELECT quorum.create_cluster('', :'own_conninfo');
SELECT quorum.create_cluster('Node 1', :'own_conninfo');
SELECT quorum.create_cluster('-n1', :'own_conninfo');
SELECT quorum.create_cluster(repeat('n', 64), :'own_conninfo');
SELECT quorum.create_cluster('n1', 'this is no conninfo');
SELECT quorum.create_cluster('n1', 'dbname=app');
SELECT quorum.create_cluster('n1', 'host=10.0.0.1 password=secret');
SELECT quorum.create_cluster('n1', 'postgresql://app:secret@10.0.0.1/app');
SELECT quorum.create_cluster('n1', 'host=10.0.0.1 dbname=' || repeat('x', 1024));
SELECT quorum.join_cluster('n1', :'own_conninfo', via => 'host=10.0.0.1 password=secret');

-- a_conninfo_that_answers_nothing_is_refused
\set VERBOSITY terse
SELECT quorum.create_cluster('n1', 'host=127.0.0.1 port=1 dbname=app');
\echo :LAST_ERROR_SQLSTATE
SELECT quorum.join_cluster('n1', :'own_conninfo', via => 'host=127.0.0.1 port=1 dbname=app');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default

-- a_database_without_the_extension_is_refused
SELECT quorum.create_cluster('n1', :'elsewhere');
SELECT quorum.join_cluster('n1', :'own_conninfo', via => :'elsewhere');

-- a_node_in_no_cluster_takes_nobody_in
SELECT quorum.join_cluster('n1', :'own_conninfo', via => :'own_conninfo');

-- a_refused_create_leaves_nothing_behind
SELECT node_name, role FROM quorum.status;

-- the_first_node_leads_when_create_cluster_returns
SELECT quorum.create_cluster('n1', :'own_conninfo');
SELECT node_name, role, leader_name, has_quorum, voters, voters_reachable, quorum_size,
       chosen_index >= applied_index AS applied_follows_chosen, ballot ~ '^[0-9]+\.1$' AS ballot_is_its_own, last_error
  FROM quorum.status;
SELECT node_name, conninfo <> '' AS has_conninfo, is_voter, is_leader, reachable, lag_entries FROM quorum.nodes;

-- a_node_belongs_to_one_cluster
SELECT quorum.create_cluster('n1', :'own_conninfo');
SELECT quorum.join_cluster('n2', :'own_conninfo', via => :'own_conninfo');

-- the_leader_refuses_names_and_conninfos_in_use
\set VERBOSITY terse
SELECT * FROM quorum.request_membership('n1', 'host=10.0.0.2', '1-1');
\set VERBOSITY default
SELECT * FROM quorum.request_membership('n2', :'own_conninfo', '1-1');
SELECT * FROM quorum.request_membership('N2', 'host=10.0.0.2', '1-1');

-- a_joining_node_must_be_where_it_says
SELECT * FROM quorum.request_membership('n2', :'own_conninfo' || ' connect_timeout=9', '1-1');
SELECT * FROM quorum.request_membership('n2', :'own_conninfo' || ' connect_timeout=9', quorum.instance_id());
SELECT * FROM quorum.request_membership('n2', :'elsewhere', '1-1');
\set VERBOSITY terse
SELECT * FROM quorum.request_membership('n2', 'host=127.0.0.1 port=1 dbname=app', '1-1');
\echo :LAST_ERROR_SQLSTATE
\set VERBOSITY default

-- a_conninfo_of_a_role_that_is_no_peer_is_refused
CREATE ROLE regress_stranger LOGIN;
SELECT * FROM quorum.request_membership('n2', :'own_conninfo' || ' user=regress_stranger', '1-1');
DROP ROLE regress_stranger;
SELECT node_name FROM quorum.nodes;
