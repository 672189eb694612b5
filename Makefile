# pg_quorum: build (PGXS) and everything that is run on it.
#
# Two halves, chosen by the goals on the command line.  The first half needs no PostgreSQL to be installed: its goals
# (check, demo, bench, ...) install what is missing and then call the second half, which is plain PGXS
# (all, install, uninstall, clean).  `make help` lists the goals.

PG_CONFIG ?= $(firstword $(wildcard /usr/lib/postgresql/15/bin/pg_config) pg_config)

DRIVER_GOALS = help check check-layers check-unit check-checkers check-sim check-model check-mutations check-regress check-pgtap check-tap \
	soak sim model bench sanitize demo demo-stop dependencies installed

ifneq ($(filter $(DRIVER_GOALS),$(MAKECMDGOALS)),)

# ---------------------------------------------------------------------------------------------------------------
# Goals that work on a machine with nothing but git and make
# ---------------------------------------------------------------------------------------------------------------

JOBS := $(shell nproc 2>/dev/null || echo 2)

.PHONY: $(DRIVER_GOALS) all install uninstall clean

help:
	@echo 'make                     build pg_quorum.so (PGXS)'
	@echo 'make install             install it into the server found by PG_CONFIG=$(PG_CONFIG)'
	@echo 'make demo                three instances, a failover, left running; make demo-stop ends them'
	@echo 'make check               everything below, in this order'
	@echo '  make check-unit        core, journal and codec, without a server'
	@echo '  make check-checkers    the checkers of histories: planted anomalies must be found'
	@echo '  make check-layers      who may include and call whom; purity of the core'
	@echo '  make check-sim         10,000 simulated schedules'
	@echo '  make check-model       ballots and membership changes as a Promela model, searched by spin, and bugs planted in it'
	@echo '  make check-mutations   bugs planted in the protocol and in certification, each of which a test must find'
	@echo '  make check-regress     pg_regress'
	@echo '  make check-pgtap       pgTAP, the SQL surface'
	@echo '  make check-tap         three real instances with faults; PROVE_TESTS="test/tap/002_*.pl" for some'
	@echo 'make sim RUNS=n SEED=n   more schedules; SEED=n alone replays one with its trace'
	@echo 'make model               the model within larger bounds: minutes, and some GB of memory'
	@echo 'make soak ROUNDS=200     kills, power cuts, cut links and standstills under load, then all rows compared; SEED=n for the same again'
	@echo 'make sanitize            unit tests and simulator with address and undefined behaviour sanitizers'
	@echo 'make bench               plain PostgreSQL, synchronous replication and pg_quorum side by side; then followers beside the leader'

# What the goals below need from the distribution; asks for nothing when all of it is there.
dependencies:
	@tools/install-deps

# The extension, built and installed where the server looks for it (with sudo if the folder is not ours).
installed: dependencies
	@tools/install-extension $(JOBS)

# Each phase is run even if an earlier one failed; the summary at the end says which.
check: installed
	@tools/check

check-unit: dependencies
	@tools/check-unit

check-checkers: dependencies
	@$(MAKE) --no-print-directory -C test/consistency check

check-layers: dependencies
	@tools/check-layers

check-sim: dependencies
	@$(MAKE) --no-print-directory -C test/sim check RUNS=$(or $(RUNS),10000)

check-model: dependencies
	@test/model/run_model.sh holds caught

check-mutations: dependencies
	@status=0; $(MAKE) --no-print-directory -C test/sim mutations || status=1; \
	test/certification/run_mutations.sh || status=1; exit $$status

check-regress: installed
	@tools/check-regress

check-pgtap: installed
	@tools/check-pgtap

check-tap: installed
	@tools/check-tap $(PROVE_TESTS)

soak: installed
	@ROUNDS=$(or $(ROUNDS),200) tools/check-tap test/soak/*.pl

sim: dependencies
	@$(MAKE) --no-print-directory -C test/sim run $(if $(RUNS),RUNS=$(RUNS)) $(if $(SEED),SEED=$(SEED))

model: dependencies
	@MODEL_MEMORY_MB=$(or $(MODEL_MEMORY_MB),12000) test/model/run_model.sh large

sanitize: dependencies
	@tools/check-unit --sanitize
	@$(MAKE) --no-print-directory -C test/sim sanitize

bench: installed
	@test/bench/bench

demo: installed
	@tools/demo start

demo-stop:
	@tools/demo stop

# So that `make clean check` works: the PGXS goals in a process of their own.
all install uninstall clean:
	@$(MAKE) --no-print-directory $@

else

# ---------------------------------------------------------------------------------------------------------------
# PGXS
# ---------------------------------------------------------------------------------------------------------------

MODULE_big = pg_quorum
EXTENSION = pg_quorum
DATA = $(wildcard sql/pg_quorum--*.sql)
PGFILEDESC = "pg_quorum - tables that commit after a quorum agreed"

# One line per folder of src; see src/README for what each may know.
SOURCES = $(wildcard src/*.c) \
	$(wildcard src/shared/*.c) \
	$(wildcard src/capture/*.c) \
	$(wildcard src/apply/*.c) \
	$(wildcard src/snapshot/*.c) \
	$(wildcard src/cluster/*.c) \
	$(wildcard src/consensus/*.c) \
	$(wildcard src/consensus/core/*.c) \
	$(wildcard src/consensus/journal/*.c) \
	$(wildcard src/consensus/transport/*.c)
HEADER_FILES = $(wildcard src/*.h src/*/*.h src/*/*/*.h)

OBJS = $(SOURCES:.c=.o)

PG_CPPFLAGS = -I$(srcdir)/src -I$(libpq_srcdir)
PG_CFLAGS = -Wextra -Wno-unused-parameter -Wno-sign-compare -Wno-missing-field-initializers \
	-Wno-declaration-after-statement -Wno-cast-function-type
SHLIB_LINK_INTERNAL = $(libpq)

EXTRA_CLEAN = build results regression.diffs regression.out

# Bitcode for the JIT would be of no use here: nothing of this is called per row from an expression.
override with_llvm = no

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# Headers are contracts between the folders: when one changes, all is compiled again.
$(OBJS): $(HEADER_FILES) Makefile

endif
