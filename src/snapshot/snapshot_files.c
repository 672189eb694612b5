/*
 * snapshot_files.c
 *	  What the files of a table say beyond its rows, on a node that comes with rows: may they be gone on with?
 *
 * Process: apply worker, within the one transaction of the copy.  A node that has forgotten what it promised joins as new because its disk lost writes,
 * perhaps some and not others.  That its visible rows are the donor's is found out by comparing them (snapshot_correct.c); here is what
 * could change these rows later without anybody having changed them.  Must never keep what only a guess could call right.
 *
 *	 1. A page or a transaction number that is later than all that this server has written: when the number is used once more, rows would come
 *		or go.  Such a table is copied whole, into files of its own.
 *	 2. A visibility map that is older than its pages: scans of an index alone would go on seeing rows that are deleted later, and VACUUM would
 *		pass them over.  It is emptied, as the indexes are built anew; the next VACUUM fills it.
 *
 * Locks: the caller's ACCESS EXCLUSIVE on the table.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/multixact.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/transam.h"
#include "access/visibilitymap.h"
#include "access/xlog.h"
#include "access/xloginsert.h"
#include "catalog/storage_xlog.h"
#include "miscadmin.h"
#include "storage/bufmgr.h"
#include "storage/bufpage.h"
#include "storage/proc.h"
#include "storage/smgr.h"
#include "utils/rel.h"

#include "snapshot/snapshot_internal.h"

typedef struct KnownNumbers
{
	XLogRecPtr	end_of_log;
	TransactionId oldest_xid;
	TransactionId next_xid;
	MultiXactId oldest_multi;
	MultiXactId next_multi;
} KnownNumbers;

/* ---- numbers of another time ---- */

static bool
is_known_xid(const KnownNumbers *known, TransactionId xid)
{
	return !TransactionIdIsNormal(xid) ||
		(TransactionIdPrecedesOrEquals(known->oldest_xid, xid) && TransactionIdPrecedes(xid, known->next_xid));
}

static bool
is_known_multi(const KnownNumbers *known, MultiXactId multi)
{
	return !MultiXactIdIsValid(multi) ||
		(MultiXactIdPrecedesOrEquals(known->oldest_multi, multi) && MultiXactIdPrecedes(multi, known->next_multi));
}

static bool
has_known_numbers(const KnownNumbers *known, HeapTupleHeader tuple)
{
	if (HeapTupleHeaderXminInvalid(tuple))
		return true;			/* whatever comes, nobody sees it */
	if (!HeapTupleHeaderXminFrozen(tuple) && !is_known_xid(known, HeapTupleHeaderGetRawXmin(tuple)))
		return false;
	if (tuple->t_infomask & HEAP_XMAX_INVALID)
		return true;
	if (tuple->t_infomask & HEAP_XMAX_IS_MULTI)
		return is_known_multi(known, HeapTupleHeaderGetRawXmax(tuple));
	return is_known_xid(known, HeapTupleHeaderGetRawXmax(tuple));
}

static bool
is_known_page(const KnownNumbers *known, Page page)
{
	if (PageIsNew(page))
		return true;
	if (PageGetLSN(page) > known->end_of_log)
		return false;
	for (OffsetNumber offset = FirstOffsetNumber; offset <= PageGetMaxOffsetNumber(page); offset++)
	{
		ItemId		item = PageGetItemId(page, offset);

		if (ItemIdIsNormal(item) && !has_known_numbers(known, (HeapTupleHeader) PageGetItem(page, item)))
			return false;
	}
	return true;
}

static bool
has_known_pages(Relation relation)
{
	KnownNumbers known = {
		.oldest_xid = relation->rd_rel->relfrozenxid,
		.oldest_multi = relation->rd_rel->relminmxid,
		.next_xid = ReadNextTransactionId(),
		.next_multi = ReadNextMultiXactId(),
		.end_of_log = GetXLogInsertRecPtr()
	};
	BufferAccessStrategy strategy = GetAccessStrategy(BAS_BULKREAD);
	BlockNumber count = RelationGetNumberOfBlocks(relation);
	bool		all_known = true;

	for (BlockNumber block = 0; block < count && all_known; block++)
	{
		Buffer		buffer = ReadBufferExtended(relation, MAIN_FORKNUM, block, RBM_NORMAL, strategy);

		LockBuffer(buffer, BUFFER_LOCK_SHARE);
		all_known = is_known_page(&known, BufferGetPage(buffer));
		UnlockReleaseBuffer(buffer);
		CHECK_FOR_INTERRUPTS();
	}
	FreeAccessStrategy(strategy);
	return all_known;
}

bool
snapshot_files_are_of_this_server(Relation relation)
{
	Oid			toast_relid = relation->rd_rel->reltoastrelid;
	Relation	toast;
	bool		are_known;

	if (relation->rd_tableam != GetHeapamTableAmRoutine() || !has_known_pages(relation))
		return false;
	if (!OidIsValid(toast_relid))
		return true;
	toast = table_open(toast_relid, AccessExclusiveLock);
	are_known = has_known_pages(toast);
	table_close(toast, NoLock);
	return are_known;
}

/* ---- the visibility map ---- */

static void
log_truncation(Relation relation)
{
	xl_smgr_truncate record = {.blkno = 0, .rnode = relation->rd_node, .flags = SMGR_TRUNCATE_VM};

	XLogBeginInsert();
	XLogRegisterData((char *) &record, sizeof(record));
	XLogFlush(XLogInsert(RM_SMGR_ID, XLOG_SMGR_TRUNCATE | XLR_SPECIAL_REL_UPDATE));
}

/* Holds if the transaction is rolled back, too: a bit that is not set says nothing. */
static void
empty_visibility_map(Relation relation)
{
	ForkNumber	fork = VISIBILITYMAP_FORKNUM;
	BlockNumber block;

	RelationGetSmgr(relation)->smgr_cached_nblocks[VISIBILITYMAP_FORKNUM] = InvalidBlockNumber;
	block = visibilitymap_prepare_truncate(relation, 0);
	if (!BlockNumberIsValid(block))
		return;
	MyProc->delayChkptFlags |= DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE;	/* as in RelationTruncate() */
	START_CRIT_SECTION();
	if (RelationNeedsWAL(relation))
		log_truncation(relation);
	smgrtruncate(RelationGetSmgr(relation), &fork, 1, &block);
	END_CRIT_SECTION();
	MyProc->delayChkptFlags &= ~(DELAY_CHKPT_START | DELAY_CHKPT_COMPLETE);
}

void
snapshot_files_forget_visibility(Relation relation)
{
	Oid			toast_relid = relation->rd_rel->reltoastrelid;

	empty_visibility_map(relation);
	if (OidIsValid(toast_relid))
	{
		Relation	toast = table_open(toast_relid, AccessExclusiveLock);

		empty_visibility_map(toast);
		table_close(toast, NoLock);
	}
}
