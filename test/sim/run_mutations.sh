#!/usr/bin/env bash
#
# run_mutations.sh first_seed runs [name ...]
#	Plants each bug of mutations/*.patch in a copy of the core and the simulator's host, and looks whether the simulator finds it.
#
# A patch is made for the root of the tree (a/src/consensus/core/…, a/test/sim/…).  TAP on stdout: a mutation that is
# not caught within the given number of schedules, does not apply or does not compile is a failure.  Without a mutation the
# same copy must pass, so that a finding is the mutation's.
#
# A patch whose head says "Unit test: name" is for a schedule too rare for random ones: test/unit/name.c must fail with it, and pass without it.
#
# The unmutated copy is built once; a mutation's copy begins with its objects, and make compiles what the patch has touched.  JOBS mutations are tried at a time.
set -uo pipefail

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
seed=$1
runs=$2
shift 2
work="$BUILD/mutations"
jobs=${JOBS:-$(nproc 2>/dev/null || echo 1)}

# report name ok|"not ok" text [log]: the result, and the end of a log if it is bad news.
report()
{
	echo "$2 - $3" >"$work/results/$1"
	[ "$2" = ok ] || [ -z "${4:-}" ] || tail -20 "$4" | sed 's/^/# /' >>"$work/results/$1"
}

# Of what can be mutated.  Times are kept, or all would be compiled again.
copy_tree()
{
	mkdir -p "$work/$1/src/consensus/core" "$work/$1/test/sim"
	cp -p "$root"/src/consensus/core/*.[ch] "$work/$1/src/consensus/core/"
	cp -p "$here"/*.[ch] "$here/Makefile" "$work/$1/test/sim/"
}

build()
{
	make -s -C "$work/$1/test/sim" BUILD="$work/$1/build" sim >"$work/$1/build.log" 2>&1
}

# With the core of that copy; the status is that of the compiler.
build_unit_test()
{
	"${CC:-cc}" -std=gnu11 -O1 -I"$work/$1/src" -I"$root/src" -I"$root/test/unit" -o "$work/$1/$2" "$root/test/unit/$2.c" \
		"$work/$1"/build/objects/core_*.o >"$work/$1/build.log" 2>&1
}

unit_test_of() { sed -n 's/^Unit test: //p;/^--- /q' "$here/mutations/$1.patch"; }

try_unit_test()
{
	local name=$1 test=$2 log="$work/$1/run.log"
	if ! build_unit_test "$name" "$test"
	then
		report "$name" "not ok" "mutation $name compiles with $test" "$work/$name/build.log"
		return
	fi
	"$work/$name/$test" >"$log" 2>&1
	if grep -q '^not ok' "$log"
	then
		report "$name" ok "mutation $name is caught by $test"
	else
		report "$name" "not ok" "mutation $name is caught by $test" "$log"
	fi
}

try_schedules()
{
	local name=$1 log="$work/$1/run.log" found
	"$work/$name/build/sim" --seed "$seed" --runs "$runs" >"$log" 2>&1
	found=$(sed -n 's/^FAILED after \([0-9]*\) schedules: SEED=\([0-9]*\) invariant \([a-z_]*\):.*/\1 schedules (invariant \3, SEED=\2)/p' "$log")
	if [ -n "$found" ]
	then
		report "$name" ok "mutation $name is caught after $found"
	else
		report "$name" "not ok" "mutation $name is caught within $runs schedules" "$log"
	fi
}

try_mutation()
{
	local name=$1 unit_test
	unit_test=$(unit_test_of "$name")
	cp -a "$work/unmutated" "$work/$name"
	if ! patch -s -p1 -d "$work/$name" <"$here/mutations/$name.patch" >"$work/$name/run.log" 2>&1
	then
		report "$name" "not ok" "mutation $name applies" "$work/$name/run.log"
	elif ! build "$name"
	then
		report "$name" "not ok" "mutation $name compiles" "$work/$name/build.log"
	elif [ -n "$unit_test" ]
	then
		try_unit_test "$name" "$unit_test"
	else
		try_schedules "$name"
	fi
	rm -rf "${work:?}/$name"
}

try_unmutated()
{
	local control_runs=$((runs < 500 ? runs : 500)) log="$work/unmutated.log"
	if "$work/unmutated/build/sim" --seed "$seed" --runs "$control_runs" >"$log" 2>&1
	then
		report unmutated ok "without a mutation nothing is found in $control_runs schedules"
	else
		report unmutated "not ok" "without a mutation nothing is found in $control_runs schedules" "$log"
	fi
}

# All unit tests that are to find a mutation.
try_unmutated_unit_tests()
{
	local name test log="$work/unmutated_unit_tests.log" passed=yes
	: >"$log"
	for test in $(for name in "${names[@]}"; do unit_test_of "$name"; done | sort -u)
	do
		build_unit_test unmutated "$test" && "$work/unmutated/$test" >>"$log" 2>&1 || passed=no
	done
	if [ $passed = yes ]
	then
		report unmutated_unit_tests ok "without a mutation the unit tests pass"
	else
		report unmutated_unit_tests "not ok" "without a mutation the unit tests pass" "$log"
	fi
}

names=("$@")
[ ${#names[@]} -gt 0 ] || mapfile -t names < <(cd "$here/mutations" && ls *.patch | sed 's/\.patch$//')

unset SEED MAKEFLAGS MFLAGS MAKELEVEL
rm -rf "$work"
mkdir -p "$work/results"
copy_tree unmutated
if ! build unmutated
then
	cat "$work/unmutated/build.log" >&2
	exit 1
fi
try_unmutated_unit_tests	# before copies of the folder are made

# Jobs are started as places become free; results are told in the order of the names.
for task in try_unmutated "${names[@]/#/try_mutation }"
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
for result in unmutated unmutated_unit_tests "${names[@]}"
do
	number=$((number + 1))
	[ -e "$work/results/$result" ] || echo "not ok - mutation $result could be tried" >"$work/results/$result"
	sed "1s/^\(not ok\|ok\) - /\1 $number - /" "$work/results/$result"
	! grep -q '^not ok' "$work/results/$result" || failed=1
done
echo "1..$number"
exit $failed
