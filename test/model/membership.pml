/*
 * membership.pml
 *	  Ballots, slots and configurations of src/consensus/core as a Promela model: does a log whose entries change its own quorums keep one value
 *	  per slot?
 *
 * The core is C and runs in the simulator; here every interleaving of a small cluster is looked at.  What is modelled is the argument at the
 * head of proposer.c: a configuration is in force from the slot after its own; its proposer proposes nothing behind it until every slot
 * up to it is chosen; votes and promises of a slot are counted in the configuration that the chosen log assigns to it.
 *
 * Messages.  All that was ever sent stays: prop[] are the ACCEPTs, voted[] the votes, told[] what leaders say is chosen, report[] the
 * promises.  A step may look at any of them, at any time, again, or never; so the network loses, doubles, delays and reorders.
 *	 - That a leader counts the votes sent rather than those that arrived is exact: it decides at any later time or never.
 *	 - LEARN carries what its sender knows as chosen, tagged with the ballot that the sender would tag it with now, or with the lowest that anyone
 *	   ever had reason to (an old message).
 *
 * Disk.  A node tells what it promised or accepted in the step in which its record is durable.  What is not durable yet was told to nobody,
 * and is as if the message had not arrived; so one step suffices for both, and a crash loses what never is a record: leadership, promises that it was
 * given, what it knows as chosen (all of it, or nothing), the volatile rise of its promise.
 *
 * Left out, because nothing of safety hangs on it: time, pre-vote, windows, and that learners catch up before they are promoted (here
 * an empty node may become a voter).  Duplicate proposals and reads: the simulator has them.
 *
 * Assertions, checked in each state in which they can break
 *	 one_value		a slot never has a second chosen value
 *	 delivered		what a node delivers is chosen there by the quorum that the log assigns to the slot
 *	 one_leader		a ballot is led once: never by two lives of a node, and never carries two values in one slot
 *	 neighbours		quorums of neighbouring configurations intersect
 *
 * Bounds come from the command line (spin -DNODES=…, see bounds.txt): NODES 2 to 4, BALLOTS 1 to 4, SLOTS 1 to 3, INITIAL (bits of the first
 * voters), TOGGLE (bits of the nodes that a configuration may add or remove), CONFIGS (how many are proposed; CONFIGS_FIRST: before any plain
 * value), CRASHES, FIRST_OWNER and SECOND_OWNER (of ballots 1 and 2), NO_LEARN (only leaders tell what is chosen).  Mutations are MUTATION_…, each
 * a bug that run_model.sh demands to be found.
 */

#ifndef NODES
#define NODES 3
#endif
#ifndef BALLOTS
#define BALLOTS 2
#endif
#ifndef SLOTS
#define SLOTS 2
#endif
#ifndef INITIAL
#define INITIAL 7
#endif
#ifndef TOGGLE
#define TOGGLE 15
#endif
#ifndef CONFIGS
#define CONFIGS 1
#endif
#ifndef FIRST_OWNER
#define FIRST_OWNER 0			/* 1: node 1 has ballot 1, without loss where the nodes differ in nothing */
#endif
#ifndef SECOND_OWNER
#define SECOND_OWNER 0			/* the same of ballot 2 */
#endif
#ifndef CRASHES
#define CRASHES 0
#endif

/* Nodes, ballots and slots count from 1; slot 0 and ballot 0 are none.  Element 0 of an array is not used. */
#define NODE_ARRAY		(NODES + 1)
#define BALLOT_ARRAY	(BALLOTS + 1)
#define SLOT_ARRAY		(SLOTS + 1)
#define AT(n, s)		((n) * SLOT_ARRAY + (s))	/* [node][slot], [ballot][slot] */
#define OF(b, n)		((b) * NODE_ARRAY + (n))	/* [ballot][node] */
#define REPORT(b, n, s) (OF(b, n) * SLOT_ARRAY + (s))

/* An accepted value and its ballot in a byte.  A plain value is named after the ballot that first proposed it; it stands for a no-op too. */
#define PLAIN(b)		(b)
#define CONFIG(mask)	(16 | (mask))
#define IS_CONFIG(v)	(((v) & 16) != 0)
#define MASK(v)			((v) & 15)
#define WITH(b, v)		(((b) << 5) | (v))
#define VALUE(a)		((a) & 31)
#define BALLOT(a)		((a) >> 5)

#define BIT(n)			(1 << ((n) - 1))
#define COUNT(mask)		(((mask) & 1) + (((mask) >> 1) & 1) + (((mask) >> 2) & 1) + (((mask) >> 3) & 1))
#define MAX(x, y)		((x) > (y) -> (x) : (y))
#define MIN(x, y)		((x) < (y) -> (x) : (y))
#ifdef MUTATION_QUORUM_ONE_TOO_SMALL
#define MAJORITY(mask, config) (COUNT((mask) & (config)) * 2 + 1 >= COUNT(config))
#else
#define MAJORITY(mask, config) (COUNT((mask) & (config)) * 2 > COUNT(config))
#endif
#define TRUE_MAJORITY(mask, config) (COUNT((mask) & (config)) * 2 > COUNT(config))

/* ---- nodes ---- */
byte promised[NODE_ARRAY];		/* the volatile promise: not below the durable one */
byte durable[NODE_ARRAY];		/* what a restarted node finds: the highest ballot of its records */
byte accepted[NODE_ARRAY * SLOT_ARRAY];	/* ballot and value; durable */
byte delivered[NODE_ARRAY];		/* known as chosen, up to this slot */
byte learned[NODE_ARRAY];		/* learned_ballot */

/* ---- ballots; an owner's part is forgotten when it leads no more ---- */
#define IDLE 0
#define PREPARING 1
#define LEADING 2
byte owner[BALLOT_ARRAY];		/* node that may use the ballot: its first user */
byte phase[BALLOT_ARRAY];
byte granted[BALLOT_ARRAY];		/* promises that arrived */
byte sent[BALLOT_ARRAY];		/* promises that are on their way, their reports in report[] */
byte report[BALLOT_ARRAY * NODE_ARRAY * SLOT_ARRAY];
byte best[BALLOT_ARRAY * SLOT_ARRAY];	/* of the reports that arrived, the one of the highest ballot */
byte next[BALLOT_ARRAY];		/* slot to propose in */

/* ---- messages that stay ---- */
byte prop[BALLOT_ARRAY * SLOT_ARRAY];
byte voted[BALLOT_ARRAY * SLOT_ARRAY];
byte told[BALLOT_ARRAY];		/* the leader says that all up to here is chosen */
byte low_tag[SLOT_ARRAY];		/* the lowest tag of a LEARN of the slot; 0: there is none yet */

/* ---- what is true, which no node can see ---- */
byte chosen[SLOT_ARRAY];		/* without a gap: votes count only once it is settled whose votes do */
byte config_after[SLOT_ARRAY];	/* in force from the next slot on */
bool was_led[BALLOT_ARRAY];

byte configs_left = CONFIGS;
byte crashes_left = CRASHES;

hidden byte i, j, k;
hidden byte at;				/* the slot that is delivered */
hidden byte value;				/* that is proposed */
hidden byte tag;				/* of the LEARN that is looked at */

/* The configuration that a node has by its delivered prefix; that prefix is the chosen one, which `delivered` asserts. */
#define CONFIG_OF(n)	config_after[delivered[n]]
#ifdef MUTATION_OLD_QUORUM
#define VOTE_CONFIG(n)	config_after[0]
#else
#define VOTE_CONFIG(n)	CONFIG_OF(n)
#endif
#define MAY_CAMPAIGN(n)	((CONFIG_OF(n) & BIT(n)) != 0)

inline forget_term(b)
{
	phase[b] = IDLE;
	granted[b] = 0;
	sent[b] = 0;
	next[b] = 0;
	for (j : 1 .. SLOTS)
	{
		best[AT(b, j)] = 0;
		for (k : 1 .. NODES)
		{
			report[REPORT(b, k, j)] = 0
		}
	}
}

/* A node that follows a higher ballot, or is started anew, leads no ballot below. */
inline step_down(n, below)
{
	for (i : 1 .. BALLOTS)
	{
		if
		:: i < below && owner[i] == n && phase[i] != IDLE -> forget_term(i)
		:: else
		fi
	}
}

inline raise_promise(n, b)
{
	if
	:: b > promised[n] ->
		promised[n] = b;
		step_down(n, b)
	:: else
	fi
}

/* Do two majorities miss each other?  A majority and its complement decide it. */
inline assert_neighbours(old, new)
{
	for (k : 1 .. 15)
	{
		if
		:: TRUE_MAJORITY(k, old) -> assert(!TRUE_MAJORITY(15 - k, new))
		:: else
		fi
	}
}

/* After each vote: what is chosen by it, in the order of slots. */
inline settle()
{
	for (i : 1 .. SLOTS)
	{
		for (j : 1 .. BALLOTS)
		{
			if
			:: prop[AT(j, i)] != 0 && (i == 1 || chosen[i - 1] != 0) && TRUE_MAJORITY(voted[AT(j, i)], config_after[i - 1]) ->
				assert(chosen[i] == 0 || chosen[i] == prop[AT(j, i)]);	/* one_value */
				if
				:: chosen[i] == 0 ->
					chosen[i] = prop[AT(j, i)];
					if
					:: IS_CONFIG(chosen[i]) ->
						config_after[i] = MASK(chosen[i]);
						assert_neighbours(config_after[i - 1], config_after[i])
					:: else -> config_after[i] = config_after[i - 1]
					fi
				:: else
				fi
			:: else
			fi
		}
	}
}

inline vote(n, b, s)
{
	if
	:: (voted[AT(b, s)] & BIT(n)) == 0 ->
		voted[AT(b, s)] = voted[AT(b, s)] | BIT(n);
		settle()
	:: else
	fi
}

inline write_accepted(n, b, s, v)
{
	accepted[AT(n, s)] = WITH(b, v);
	durable[n] = MAX(durable[n], b)
}

/* ---- phase 1 ---- */

#define CAN_CAMPAIGN(n, b) (b > promised[n] && (owner[b] == 0 || owner[b] == n) && MAY_CAMPAIGN(n) && phase[b] == IDLE && delivered[n] < SLOTS)
inline campaign(n, b)
{
	step_down(n, b);
	owner[b] = n;
	phase[b] = PREPARING;
	promised[n] = b;
#ifndef MUTATION_PROMISE_NOT_PERSISTED
	durable[n] = b;
#endif
	granted[b] = BIT(n)
}

/* An acceptor that has delivered more refuses. */
#define CAN_PROMISE(n, b) (phase[b] != IDLE && owner[b] != n && b >= promised[n] && delivered[n] <= delivered[owner[b]] && \
						   ((granted[b] | sent[b]) & BIT(n)) == 0)
inline promise(n, b)
{
	raise_promise(n, b);
#ifndef MUTATION_PROMISE_NOT_PERSISTED
	durable[n] = b;
#endif
	sent[b] = sent[b] | BIT(n);
	for (i : 1 .. SLOTS)
	{
		if
		:: i > delivered[owner[b]] -> report[REPORT(b, n, i)] = accepted[AT(n, i)]
		:: else
		fi
	}
}

#define CAN_HEAR_PROMISE(n, b) ((sent[b] & BIT(n)) != 0)
inline hear_promise(n, b)
{
	sent[b] = sent[b] & ~BIT(n);
	granted[b] = granted[b] | BIT(n);
	for (i : 1 .. SLOTS)
	{
		if
		:: i > delivered[owner[b]] && (phase[b] == PREPARING || i >= next[b]) && BALLOT(report[REPORT(b, n, i)]) > BALLOT(best[AT(b, i)]) ->
#ifndef MUTATION_ACCEPTED_VALUES_IGNORED
			best[AT(b, i)] = report[REPORT(b, n, i)]
#else
			skip
#endif
		:: else
		fi;
		report[REPORT(b, n, i)] = 0
	}
}

#define CAN_LEAD(b) (phase[b] == PREPARING && MAJORITY(granted[b], CONFIG_OF(owner[b])) && delivered[owner[b]] < SLOTS)
inline lead(b)
{
	assert(!was_led[b]);	/* one_leader */
	was_led[b] = true;
	phase[b] = LEADING;
	next[b] = delivered[owner[b]] + 1
}

/* ---- phase 2 ---- */

#define IS_LAST_CONFIG_OPEN(b) (IS_CONFIG(prop[AT(b, next[b] - 1)]) && delivered[owner[b]] < next[b] - 1)
#ifdef MUTATION_GOES_ON_BEHIND_CONFIGURATION
#define BEHIND_BARRIER(b) false
#else
#define BEHIND_BARRIER(b) (next[b] > 1 && IS_LAST_CONFIG_OPEN(b))
#endif
#ifdef MUTATION_NEW_CONFIGURATION_WITHOUT_PROMISES
#define HAS_PROMISES(b) true
#else
#define HAS_PROMISES(b) MAJORITY(granted[b], CONFIG_OF(owner[b]))
#endif
#define CAN_FILL(b) (phase[b] == LEADING && next[b] <= SLOTS && !BEHIND_BARRIER(b) && HAS_PROMISES(b))
#define HELD(b, s)	(best[AT(b, s)] | accepted[AT(owner[b], s)])
#if SLOTS == 2
#define HOLDS_BEYOND(b) (next[b] < 2 && HELD(b, 2) != 0)
#else
#define HOLDS_BEYOND(b) ((next[b] < 2 && HELD(b, 2) != 0) || (next[b] < 3 && HELD(b, 3) != 0))
#endif
#if SLOTS == 1
#undef HOLDS_BEYOND
#define HOLDS_BEYOND(b) false
#endif

inline propose(b)
{
	assert(prop[AT(b, next[b])] == 0 || prop[AT(b, next[b])] == value);	/* one_leader */
	prop[AT(b, next[b])] = value;
	best[AT(b, next[b])] = 0;
	if
	:: delivered[owner[b]] < next[b] -> write_accepted(owner[b], b, next[b], value)
	:: else
	fi;
	next[b] = next[b] + 1;
	vote(owner[b], b, next[b] - 1)
}

/* P2c. */
#define CAN_ADOPT(b) (CAN_FILL(b) && (HELD(b, next[b]) != 0 || HOLDS_BEYOND(b)))
inline adopt(b)
{
	if
	:: HELD(b, next[b]) == 0 -> value = PLAIN(b); propose(b)
	:: HELD(b, next[b]) != 0 && BALLOT(best[AT(b, next[b])]) > BALLOT(accepted[AT(owner[b], next[b])]) ->
		value = VALUE(best[AT(b, next[b])]);
		propose(b)
	:: else -> value = VALUE(accepted[AT(owner[b], next[b])]); propose(b)
	fi
}

#define MAY_BE_NEW(b) (CAN_FILL(b) && HELD(b, next[b]) == 0 && !HOLDS_BEYOND(b))
#ifdef CONFIGS_FIRST
#define CAN_PROPOSE(b) (MAY_BE_NEW(b) && configs_left == 0)
#else
#define CAN_PROPOSE(b) MAY_BE_NEW(b)
#endif
#ifdef MUTATION_TWO_VOTERS_AT_ONCE
#define CHANGED(n)	(BIT(n) | BIT(n % NODES + 1))
#else
#define CHANGED(n)	BIT(n)
#endif
#ifdef MUTATION_GOES_ON_BEHIND_CONFIGURATION
#define IS_ALONE(b) true
#else
#define IS_ALONE(b) (next[b] == delivered[owner[b]] + 1)
#endif
#define CAN_PROPOSE_CONFIG(b, n) (configs_left > 0 && (TOGGLE & BIT(n)) != 0 && MAY_BE_NEW(b) && IS_ALONE(b) && \
								  (CONFIG_OF(owner[b]) ^ CHANGED(n)) != 0)
inline propose_config(b, n)
{
	configs_left--;
	value = CONFIG(CONFIG_OF(owner[b]) ^ CHANGED(n));
	propose(b)
}

/* Also the vote without looking, of one that knows what is chosen there: acceptor.c, invariant 3. */
#define CAN_ACCEPT(n, b, s) (prop[AT(b, s)] != 0 && owner[b] != n && b >= promised[n] && \
							 ((voted[AT(b, s)] & BIT(n)) == 0 || (s > delivered[n] && BALLOT(accepted[AT(n, s)]) != b)))
inline accept_value(n, b, s)
{
	raise_promise(n, b);
	if
	:: s > delivered[n] && BALLOT(accepted[AT(n, s)]) != b -> write_accepted(n, b, s, prop[AT(b, s)])
	:: else
	fi;
	vote(n, b, s)
}

/* ---- learning ---- */

inline note_tag(n)
{
	if
	:: low_tag[at] == 0 || MAX(learned[n], promised[n]) < low_tag[at] -> low_tag[at] = MAX(learned[n], promised[n])
	:: else
	fi
}

inline deliver(n)
{
	at = delivered[n] + 1;
	assert(chosen[at] != 0 && VALUE(accepted[AT(n, at)]) == chosen[at]);	/* delivered */
	delivered[n] = at;
	note_tag(n);
	for (i : 1 .. BALLOTS)
	{
		if
		:: owner[i] == n && phase[i] != IDLE ->
			best[AT(i, at)] = 0;
			for (j : 1 .. NODES)
			{
				report[REPORT(i, j, at)] = 0
			}
			told[i] = (phase[i] == LEADING && at < next[i] -> at : told[i]);
			if
			:: !MAY_CAMPAIGN(n) || at == SLOTS -> forget_term(i)	/* with every slot delivered there is nothing left to do */
			:: else
			fi
		:: else
		fi
	}
}

#define CAN_COUNT(b) (phase[b] == LEADING && delivered[owner[b]] + 1 < next[b] && \
					  MAJORITY(voted[AT(b, delivered[owner[b]] + 1)], VOTE_CONFIG(owner[b])))
inline count_votes(b)
{
	learned[owner[b]] = MAX(learned[owner[b]], b);
	deliver(owner[b])
}

/* The leader of b says so, and the value was accepted in b here. */
#define CAN_BELIEVE(n, b) (owner[b] != n && delivered[n] < told[b] && promised[n] == b && BALLOT(accepted[AT(n, delivered[n] + 1)]) == b)
inline believe(n, b)
{
	learned[n] = MAX(learned[n], b);
	deliver(n)
}

#ifdef NO_LEARN
#define MAY_LEARN false
#else
#define MAY_LEARN true
#endif
#define CAN_LEARN(n) (MAY_LEARN && delivered[n] < SLOTS && low_tag[delivered[n] + 1] != 0)
inline learn(n)
{
	learned[n] = MAX(learned[n], tag);
	for (i : 1 .. BALLOTS)
	{
		if
		:: owner[i] == n && phase[i] == LEADING && delivered[n] + 1 >= next[i] -> forget_term(i)	/* it is behind */
		:: else
		fi
	}
	if
	:: VALUE(accepted[AT(n, delivered[n] + 1)]) == chosen[delivered[n] + 1] -> skip
	:: else ->
		step_down(n, BALLOTS + 1);
		if
		:: tag < BALLOT(accepted[AT(n, delivered[n] + 1)]) -> tag = BALLOT(accepted[AT(n, delivered[n] + 1)])
		:: else
		fi;
		write_accepted(n, tag, delivered[n] + 1, chosen[delivered[n] + 1])
	fi;
	deliver(n)
}

#define CAN_LEARN_FROM(n, m) (MAY_LEARN && delivered[m] > delivered[n])
#define TAG_OF(m)			MAX(learned[m], promised[m])

/* ---- crash ---- */

#define CAN_CRASH(n) (crashes_left > 0)
inline crash(n, known)
{
	crashes_left--;
	step_down(n, BALLOTS + 1);
	promised[n] = durable[n];
	learned[n] = 0;
	delivered[n] = known
}

/*
 * ---- every step, each by itself ----
 *
 * The processes below are no processes of the system, just a way to write "for each node and ballot": each has one place to be at.
 */

proctype NodeSteps(byte n)
{
	do
	:: d_step { CAN_LEARN(n) -> tag = low_tag[delivered[n] + 1]; learn(n); skip }
	:: d_step { CAN_CRASH(n) -> crash(n, 0); skip }
	:: d_step { CAN_CRASH(n) && delivered[n] > 0 -> crash(n, delivered[n]); skip }
	od
}

proctype PairSteps(byte n; byte m)
{
	do
	:: d_step { CAN_LEARN_FROM(n, m) -> tag = TAG_OF(m); learn(n); skip }
	od
}

proctype BallotSteps(byte b)
{
	do
	:: d_step { CAN_LEAD(b) -> lead(b); skip }
	:: d_step { CAN_ADOPT(b) -> adopt(b); skip }
	:: d_step { CAN_PROPOSE(b) -> value = PLAIN(b); propose(b); skip }
	:: d_step { CAN_COUNT(b) -> count_votes(b); skip }
	od
}

proctype NodeBallotSteps(byte n; byte b)
{
	do
	:: d_step { CAN_CAMPAIGN(n, b) -> campaign(n, b); skip }
	:: d_step { CAN_PROMISE(n, b) -> promise(n, b); skip }
	:: d_step { CAN_HEAR_PROMISE(n, b) -> hear_promise(n, b); skip }
	:: d_step { CAN_PROPOSE_CONFIG(b, n) -> propose_config(b, n); skip }
	:: d_step { CAN_BELIEVE(n, b) -> believe(n, b); skip }
	:: d_step { CAN_ACCEPT(n, b, 1) -> accept_value(n, b, 1); skip }
#if SLOTS > 1
	:: d_step { CAN_ACCEPT(n, b, 2) -> accept_value(n, b, 2); skip }
#endif
#if SLOTS > 2
	:: d_step { CAN_ACCEPT(n, b, 3) -> accept_value(n, b, 3); skip }
#endif
	od
}

init
{
	byte n, b;

	atomic
	{
		config_after[0] = INITIAL;
		owner[1] = FIRST_OWNER;
#if BALLOTS > 1
		owner[2] = SECOND_OWNER;
#endif
		for (n : 1 .. NODES)
		{
			run NodeSteps(n);
			for (b : 1 .. NODES)
			{
				if
				:: b != n -> run PairSteps(n, b)
				:: else
				fi
			}
			for (b : 1 .. BALLOTS)
			{
				run NodeBallotSteps(n, b)
			}
		}
		for (b : 1 .. BALLOTS)
		{
			run BallotSteps(b)
		}
		n = 0;
		b = 0
	}
}
