#!/bin/sh
#
# run_mutations.sh first_seed runs [name ...]
#	Plants each bug of mutations/*.patch in a copy of the core and the simulator's host, and looks whether the simulator finds it.
#
# A patch is made for the root of the tree (a/src/consensus/core/…, a/test/sim/…).  TAP on stdout: a mutation that is
# not caught within the given number of schedules, does not apply or does not compile is a failure.  Without a mutation the
# same copy must pass, so that a finding is the mutation's.
#
# A patch whose head says "Unit test: name" is for a schedule too rare for random ones: test/unit/name.c must fail with it.

here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
seed=$1
runs=$2
shift 2
work="$BUILD/mutations"
number=0
failed=0

if [ $# -gt 0 ]
then
	names=$*
else
	names=$(cd "$here/mutations" && ls *.patch | sed 's/\.patch$//')
fi

report()
{
	number=$((number + 1))
	echo "$1 $number - $2"
	[ "$1" = ok ] || failed=1
}

# A fresh copy of what can be mutated.
copy_tree()
{
	rm -rf "$work/$1"
	mkdir -p "$work/$1/src/consensus/core" "$work/$1/test/sim"
	cp "$root"/src/consensus/core/*.[ch] "$work/$1/src/consensus/core/"
	cp "$here"/*.[ch] "$here/Makefile" "$work/$1/test/sim/"
}

build()
{
	make -s -C "$work/$1/test/sim" BUILD="$work/$1/build" sim >"$work/$1/build.log" 2>&1
}

# Does it compile with the mutated core, and find it?
unit_test_fails()
{
	${CC:-cc} -std=gnu11 -O1 -I"$work/$1/src" -I"$root/src" -I"$root/test/unit" -o "$work/$1/unit" "$root/test/unit/$2.c" \
		"$work/$1"/src/consensus/core/*.c >"$work/$1/unit.log" 2>&1 || return 1
	"$work/$1/unit" >"$work/$1/unit.log" 2>&1
	grep -q '^not ok' "$work/$1/unit.log"
}

unset SEED MAKEFLAGS MFLAGS MAKELEVEL
mkdir -p "$work"

copy_tree unmutated
control_runs=$((runs < 500 ? runs : 500))
if build unmutated && "$work/unmutated/build/sim" --seed "$seed" --runs "$control_runs" >"$work/unmutated/run.log" 2>&1
then
	report ok "without a mutation nothing is found in $control_runs schedules"
else
	report "not ok" "without a mutation nothing is found in $control_runs schedules"
fi

for name in $names
do
	copy_tree "$name"
	if ! patch -s -p1 -d "$work/$name" <"$here/mutations/$name.patch" >"$work/$name/patch.log" 2>&1
	then
		report "not ok" "mutation $name applies"
		sed 's/^/# /' "$work/$name/patch.log"
		continue
	fi
	if ! build "$name"
	then
		report "not ok" "mutation $name compiles"
		sed 's/^/# /' "$work/$name/build.log"
		continue
	fi
	unit_test=$(sed -n 's/^Unit test: //p' "$here/mutations/$name.patch")
	if [ -n "$unit_test" ]
	then
		if unit_test_fails "$name" "$unit_test"
		then
			report ok "mutation $name is caught by $unit_test"
		else
			report "not ok" "mutation $name is caught by $unit_test"
			sed 's/^/# /' "$work/$name/unit.log"
		fi
		rm -rf "$work/$name"
		continue
	fi
	output=$("$work/$name/build/sim" --seed "$seed" --runs "$runs" 2>&1)
	found=$(echo "$output" | sed -n 's/^FAILED after \([0-9]*\) schedules: SEED=\([0-9]*\) invariant \([a-z_]*\):.*/\1 schedules (invariant \3, SEED=\2)/p')
	if [ -n "$found" ]
	then
		report ok "mutation $name is caught after $found"
	else
		report "not ok" "mutation $name is caught within $runs schedules"
		echo "$output" | tail -3 | sed 's/^/# /'
	fi
	rm -rf "$work/$name"
done
echo "1..$number"
exit $failed
