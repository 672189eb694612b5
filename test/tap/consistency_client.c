/*
 * consistency_client.c
 *	  The client of the consistency tests: one connection to one node, which runs transactions and writes a history of what it asked and
 *	  what it was told.  test/consistency/history.h has the format of its lines.
 *
 *	 consistency_client WORKLOAD HISTORY CLIENT NODE SUFFIX ZERO_US ROTATION_MS PAUSE_US LEVELS READS CONNINFO
 *
 *		WORKLOAD	lists, bank, registers: until SIGTERM.
 *					final-lists, final-bank, final-registers: one read of everything in one snapshot; exit status 1 if it fails.
 *		CLIENT, NODE	numbers for the history; CLIENT makes the elements, values and transfers unique
 *		SUFFIX		of the names of the tables
 *		ZERO_US, ROTATION_MS	lists and registers are numbered by time since then: a few are in use at any time, and each only for a few
 *					rotations, so that no list and no search for an order becomes long
 *		LEVELS		rc, rr, ser, joined by commas: which isolation levels it draws from
 *		READS		linearizable: the server's default.  local: SET quorum.read_consistency = local.  unpromised: nothing is set, and
 *					the history says that its reads are local ones.
 *
 * Outcomes
 *	 - What was answered before COMMIT was sent, or instead of sending it, leaves no doubt: failed.
 *	 - An error of class 40, 25006, 53400, 55P03 or 57014 in answer to what commits: failed.
 *	 - Class 08, 57P.., a connection that broke or did not answer in time: unknown.  Any other error too; it stands in the history.
 *
 * Invariants
 *	 1. Nothing waits without end: connecting and each answer have a time limit, so a node that stands still is left.
 *	 2. A transaction's line is written before the next one starts.  An append whose statement was sent is in it, whatever came back.
 */
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#include "consistency_attempt.h"

#define RETRY_PAUSE_US 50000

static volatile sig_atomic_t stop_requested = 0;

static void
request_stop(int signal_number)
{
	(void) signal_number;
	stop_requested = 1;
}

static int
read_final_state(Client *client, const char *workload)
{
	Attempt		attempt;
	bool		failed;

	client->connection = connect_in_time(client->conninfo, FINAL_TIMEOUT_MS);
	if (client->connection == NULL)
		return 1;
	open_attempt(&attempt, client, "final");
	if (strcmp(workload, "lists") == 0)
		read_final_lists(&attempt);
	else if (strcmp(workload, "registers") == 0)
		read_final_registers(&attempt);
	else
		read_final_bank(&attempt);
	failed = attempt.outcome != NULL;
	close_attempt(&attempt);
	PQfinish(client->connection);
	return failed ? 1 : 0;
}

static void
connect_client(Client *client)
{
	client->connection = connect_in_time(client->conninfo, ANSWER_TIMEOUT_MS);
	if (client->connection != NULL && strcmp(client->reads, "local") == 0)
	{
		Answer		answer = ask(client->connection, "SET quorum.read_consistency = 'local'", false, ANSWER_TIMEOUT_MS);

		free_answer(&answer);
		if (answer.kind != ANSWER_OK)
		{
			PQfinish(client->connection);
			client->connection = NULL;
		}
	}
}

static void
work_until_stopped(Client *client, void (*attempt_one) (Client *))
{
	while (!stop_requested)
	{
		if (client->connection == NULL)
			connect_client(client);
		if (client->connection == NULL)
		{
			pause_us(RETRY_PAUSE_US);
			continue;
		}
		attempt_one(client);
		pause_us(client->pause_us / 2 + lot(client, (int) client->pause_us + 1));
	}
	PQfinish(client->connection);
}

int
main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = request_stop};
	Client		client = {0};
	const char *workload = argc > 1 ? argv[1] : "";
	int			status = 0;

	if (argc != 12 || (client.history = fopen(argv[2], "a")) == NULL)
	{
		fprintf(stderr, "usage: consistency_client WORKLOAD HISTORY CLIENT NODE SUFFIX ZERO_US ROTATION_MS PAUSE_US LEVELS READS CONNINFO\n");
		return 2;
	}
	client.number = atoi(argv[3]);
	client.node = atoi(argv[4]);
	client.suffix = argv[5];
	client.zero_us = atoll(argv[6]);
	client.rotation_us = atoll(argv[7]) * 1000;
	client.pause_us = atoll(argv[8]);
	client.levels = argv[9];
	client.reads = argv[10];
	client.conninfo = argv[11];
	client.random_state = 88172645463325252ULL + (uint64_t) client.number * 7919 + (uint64_t) client.zero_us;
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGINT, &action, NULL);
	signal(SIGPIPE, SIG_IGN);
	prctl(PR_SET_PDEATHSIG, SIGTERM);

	if (strncmp(workload, "final-", 6) == 0)
		status = read_final_state(&client, workload + 6);
	else if (strcmp(workload, "lists") == 0)
		work_until_stopped(&client, attempt_lists);
	else if (strcmp(workload, "bank") == 0)
		work_until_stopped(&client, attempt_bank);
	else if (strcmp(workload, "registers") == 0)
		work_until_stopped(&client, attempt_registers);
	else
		status = 2;
	fclose(client.history);
	return status;
}
