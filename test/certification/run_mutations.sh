#!/usr/bin/env bash
#
# run_mutations.sh [name ...]
#	Plants each bug of mutations/*.patch in a copy of the tree, and looks whether a test finds it.
#
# A patch of the certifier, of the ages or epochs of tokens, or of steps of a clock, must make a unit test fail.  One of the capture says in its head which cases of which TAP test find it (without a test:
# 018_conflicts_between_nodes.pl), and in which of the modes of that; they are run with a copy of the PostgreSQL installation, into which the mutated
# library goes, so that nobody else's is touched.  TAP on stdout: a mutation that is not caught, does not apply or does not compile is a failure.  Without a mutation
# all these tests must pass, so that a finding is the mutation's.  JOBS mutations are tried at a time: one more than there are processors, since servers wait
# a good part of the time.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
jobs=${JOBS:-$(($(nproc) + 1))}
usual_test=018_conflicts_between_nodes.pl
work=
unset MAKEFLAGS MFLAGS MAKELEVEL CASES MODE PROVE_TESTS PROVE_FLAGS

# ---- pure parts ----

unit_parts=(certifier token_ages token_epochs clock_steps)
unit_tests=(test_certifier test_certified_transactions test_certifier_tokens test_token_ages test_token_epochs test_clock_steps)

compile_unit() { "${CC:-gcc}" -std=gnu11 -g -O1 -w "$@"; }

# The tests' own objects are the same for all mutations, of which none touches a header.
compile_unit_tests()
{
	local test
	mkdir "$work/unit_tests"
	for test in "${unit_tests[@]}"
	do
		compile_unit "-I$root/src" "-I$root/test/unit" -c -o "$work/unit_tests/$test.o" "$root/test/unit/$test.c"
	done
}

build_and_run_unit_tests()
{
	local tree=$1 test part objects=()
	for part in "${unit_parts[@]}"
	do
		compile_unit "-I$tree/src" -c -o "$tree/$part.o" "$tree/src/shared/$part.c" >"$tree/build.log" 2>&1 || return 2
		objects+=("$tree/$part.o")
	done
	for test in "${unit_tests[@]}"
	do
		compile_unit -o "$tree/$test" "$work/unit_tests/$test.o" "${objects[@]}" >"$tree/build.log" 2>&1 || return 2
		# A test computes for half a second; a search may never end in a map that is full.  Processor time, so that a busy machine is no finding.
		{ (ulimit -t 5; exec "$tree/$test" 2>&1) >"$tree/run.log"; } 2>/dev/null || return 1	# the shell need not say who was killed
	done
}

# ---- with servers ----

# Where the server looks for its files follows from where its program lies, so a copy with the same folders is an installation of its own.
copy_installation()
{
	local folder
	for folder in "$(pg_config_of_original --bindir)" "$(pg_config_of_original --pkglibdir)" "$(pg_config_of_original --sharedir)" \
		"$(pg_config_of_original --includedir)"
	do
		mkdir -p "$1$(dirname "$folder")"
		cp -rL "$folder" "$1$(dirname "$folder")/"
	done
}

pg_config_of_original()
{
	"$root/tools/pg-config" "$@"
}

# The tree's library into a copy of the installation, then the cases; returns prove's status, its output in run.log.
run_cases()
{
	local tree=$1 cases=$2 test=$3 mode=$4 server=$1/server
	cp -rl "$work/server" "$server"
	cp --remove-destination "$tree/pg_quorum.so" "$server$(pg_config_of_original --pkglibdir)/pg_quorum.so"
	PG_CONFIG="$server$(pg_config_of_original --bindir)/pg_config" CASES="$cases" MODE="$mode" STOP_AT_FAILURE=1 PROVE_FLAGS=-v \
		timeout --kill-after=20 120 "$tree/tools/check-tap" "test/tap/$test" >"$tree/run.log" 2>&1
}

# Did a test with a name that the cases match fail?  That a cluster did not start is no finding.
case_failed()
{
	CASES=$2 perl -ne '$found = 1 if /^(?:not ok \d+ - |#\s+Failed test .)(.*?)(?: \((?:certified|applied)\))?(?:: .*)?(?:\x27)?$/ && $1 =~ /$ENV{CASES}/; END { exit !$found }' "$1"
}

# ---- one mutation ----

cases_of() { sed -n 's/^Cases: //p;/^--- /q' "$1"; }
mode_of() { sed -n 's/^Mode: //p;/^--- /q' "$1"; }

test_of()
{
	local test
	test=$(sed -n 's/^Test: //p;/^--- /q' "$1")
	echo "${test:-$usual_test}"
}

copy_of_tree()
{
	local part
	mkdir -p "$1/src/shared"
	if [ "$2" = with_server ]
	then
		cp -a "$work/unmutated/." "$1/"
	else
		for part in "${unit_parts[@]}"
		do
			cp "$root/src/shared/$part".[ch] "$1/src/shared/"
		done
	fi
}

build_extension()
{
	PG_CONFIG="$(pg_config_of_original --bindir)/pg_config" make -s -C "$1" all >"$1/build.log" 2>&1
}

first_failure()
{
	local failure
	failure=$(sed -n 's/^not ok [0-9]* - //p' "$1" | head -1)
	echo "${failure:-the test does not come to its end}"
}

try_mutation()
{
	local name=$1 patch="$here/mutations/$1.patch" tree="$work/$1" cases status=0
	cases=$(cases_of "$patch")
	copy_of_tree "$tree" "${cases:+with_server}"
	if ! patch -s -p1 -d "$tree" <"$patch" >"$tree/run.log" 2>&1
	then
		report "$tree" "not ok" "mutation $name applies"
		return
	fi
	if [ -z "$cases" ]
	then
		build_and_run_unit_tests "$tree" || status=$?
		case $status in
			1) report "$tree" ok "mutation $name is caught: $(first_failure "$tree/run.log")" ;;
			2) cp "$tree/build.log" "$tree/run.log"; report "$tree" "not ok" "mutation $name compiles" ;;
			*) report "$tree" "not ok" "mutation $name is caught by a unit test" ;;
		esac
	elif ! build_extension "$tree"
	then
		cp "$tree/build.log" "$tree/run.log"
		report "$tree" "not ok" "mutation $name compiles"
	elif ! run_cases "$tree" "$cases" "$(test_of "$patch")" "$(mode_of "$patch")" && case_failed "$tree/run.log" "$cases"
	then
		report "$tree" ok "mutation $name is caught: $(first_failure "$tree/run.log")"
	else
		report "$tree" "not ok" "mutation $name is caught by the cases $cases"
	fi
}

# Writes the result: "ok" or "not ok", what, and a log's end.
report()
{
	echo "$2 - $3" >"$work/results/$(basename "$1")"
	[ "$2" = ok ] || tail -30 "$1/run.log" | sed 's/^/# /' >>"$work/results/$(basename "$1")"
	rm -rf "$1"
}

# ---- without a mutation ----

try_unmutated_unit_tests()
{
	local tree="$work/unit"
	copy_of_tree "$tree" ""
	if build_and_run_unit_tests "$tree"
	then
		report "$tree" ok "without a mutation the unit tests pass"
	else
		report "$tree" "not ok" "without a mutation the unit tests pass"
	fi
}

# Each test and mode in which a mutation is to be tried.
settings()
{
	local name
	for name in "${names[@]}"
	do
		[ -z "$(cases_of "$here/mutations/$name.patch")" ] || echo "$(test_of "$here/mutations/$name.patch") $(mode_of "$here/mutations/$name.patch")"
	done | sort -u
}

name_of_setting() { echo "cases_${1%.pl}${2:+_$2}"; }

# All cases that find a mutation in that setting.
try_unmutated_cases()
{
	local test=$1 mode=${2:-} name patch cases="" tree
	tree="$work/$(name_of_setting "$@")"
	for name in "${names[@]}"
	do
		patch="$here/mutations/$name.patch"
		[ "$(test_of "$patch") $(mode_of "$patch")" != "$test $mode" ] || [ -z "$(cases_of "$patch")" ] || cases="${cases:+$cases|}$(cases_of "$patch")"
	done
	cp -a "$work/unmutated" "$tree"
	if run_cases "$tree" "$cases" "$test" "$mode"
	then
		report "$tree" ok "without a mutation their cases pass ($test${mode:+, $mode})"
	else
		report "$tree" "not ok" "without a mutation their cases pass ($test${mode:+, $mode})"
	fi
}

# ---- all of them ----

names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(cd "$here/mutations" && ls *.patch | sed 's/\.patch$//')

work=$(mktemp -d "${TMPDIR:-/tmp}/pg_quorum_mutations.XXXXXX")
trap 'rm -rf "$work"' EXIT
chmod 755 "$work"
mkdir "$work/results"

patches=("${names[@]/#/$here/mutations/}")
if grep -q '^Cases: ' "${patches[@]/%/.patch}"
then
	mkdir "$work/unmutated"
	(cd "$root" && cp -a --parents src test/tap tools sql Makefile pg_quorum.control "$work/unmutated/")
	build_extension "$work/unmutated" || { cat "$work/unmutated/build.log" >&2; exit 1; }
	copy_installation "$work/server"
fi

mapfile -t all_settings < <(settings)
results=(unit)
for setting in ${all_settings[@]+"${all_settings[@]}"}
do
	results+=("$(name_of_setting $setting)")
done

compile_unit_tests

# Jobs are started as places become free; results are told in the order of the names.
for task in try_unmutated_unit_tests ${all_settings[@]+"${all_settings[@]/#/try_unmutated_cases }"} "${names[@]/#/try_mutation }"
do
	while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]
	do
		wait -n || true
	done
	$task &
done
wait

number=0
failed=0
for result in "${results[@]}" "${names[@]}"
do
	number=$((number + 1))
	[ -e "$work/results/$result" ] || echo "not ok - mutation $result could be tried" >"$work/results/$result"
	sed "1s/^\(not ok\|ok\) - /\1 $number - /" "$work/results/$result"
	! grep -q '^not ok' "$work/results/$result" || failed=1
done
echo "1..$number"
exit $failed
