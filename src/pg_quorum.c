/*
 * pg_quorum.c
 *	  Entry point of the library: wires settings, shared memory, transaction hooks and background workers.
 *
 * Runs in the postmaster.  Nothing else belongs here.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "storage/ipc.h"
#include "storage/lwlock.h"
#include "storage/shmem.h"

#include "apply/apply.h"
#include "capture/capture.h"
#include "capture/certified_keys.h"
#include "cluster/check_worker.h"
#include "config.h"
#include "consensus/consensus_worker.h"
#include "consensus/published_state.h"
#include "shared/shmem.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

static shmem_request_hook_type previous_shmem_request_hook = NULL;
static shmem_startup_hook_type previous_shmem_startup_hook = NULL;

static void
request_hook(void)
{
	if (previous_shmem_request_hook)
		previous_shmem_request_hook();
	shmem_request();
	RequestAddinShmemSpace(published_state_shmem_size());
}

static void
startup_hook(void)
{
	if (previous_shmem_startup_hook)
		previous_shmem_startup_hook();
	shmem_startup();
	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	published_state_shmem_startup();
	LWLockRelease(AddinShmemInitLock);
}

static void
register_worker(const char *name, const char *function, int flags)
{
	BackgroundWorker worker;

	memset(&worker, 0, sizeof(worker));
	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | flags;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "pg_quorum", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, function, BGW_MAXLEN);
	strlcpy(worker.bgw_name, name, BGW_MAXLEN);
	strlcpy(worker.bgw_type, name, BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

void
_PG_init(void)
{
	if (!process_shared_preload_libraries_in_progress)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("pg_quorum must be loaded at server start"),
				 errhint("Add pg_quorum to shared_preload_libraries and restart the server.")));

	config_define_settings();
	previous_shmem_request_hook = shmem_request_hook;
	shmem_request_hook = request_hook;
	previous_shmem_startup_hook = shmem_startup_hook;
	shmem_startup_hook = startup_hook;

	capture_init();
	certified_keys_init();
	row_locks_init();
	doom_message_init();
	drawn_numbers_init();
	guard_init();
	maintenance_scope_init();
	read_barrier_init();
	quarantine_init();
	commit_gate_init();
	published_state_init();

	register_worker("quorum consensus", "quorum_consensus_worker_main", 0);
	register_worker("quorum compactor", "quorum_compactor_main", 0);
	register_worker("quorum apply", "quorum_apply_worker_main", BGWORKER_BACKEND_DATABASE_CONNECTION);
	register_worker("quorum lock watcher", "quorum_lock_watcher_main", 0);
	register_worker("quorum check", "quorum_check_worker_main", BGWORKER_BACKEND_DATABASE_CONNECTION);
}
