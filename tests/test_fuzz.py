"""What any damage to landing files may cost: the record it hit, with a reason, and no other."""

from fuzz_inputs import KINDS
from fuzzing import as_markdown, fuzz


def test_whatever_the_damage_each_record_is_accepted_or_rejected_with_a_reason():
    # Checked on each folder: a refused file is named with a remedy and nothing of it is loaded;
    # loading twice changes nothing, nor does another order of files and rows.
    tallies = fuzz(5, seed=0)

    assert set(KINDS) < set(tallies)
    for damage, tally in tallies.items():
        assert tally.files >= 5 or damage not in KINDS
        assert tally.arrived == tally.accepted + tally.rejected, damage
        assert tally.lost == 0
        if damage.startswith("refused"):
            assert (tally.refused_files, tally.arrived) == (tally.files, 0)
    # The records were not all refused, nor all accepted.
    assert min(sum(t.accepted for t in tallies.values()), sum(t.rejected for t in tallies.values()))
    assert as_markdown(tallies).splitlines()[-1].startswith("| all | ")
