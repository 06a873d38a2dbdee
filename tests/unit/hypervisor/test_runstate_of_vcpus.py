"""Proves that a vCPU's run state is right when it is brought up before it has noticed that it was
taken down. Cannot see a real engine's delay between a kick and the exit.
"""

from __future__ import annotations

from hvmlite.abi.vcpu import RUNSTATE_offline, RUNSTATE_running

from .fakes import Rig


def test_up_again_before_it_has_left_the_guest() -> None:
    rig = Rig(2)
    try:
        rig.start()
        vcpu = rig.domain.vcpus[1]
        assert vcpu.running
        # Nobody serves the exit that the kick makes.
        rig.engine(1).on_kick = lambda: None
        vcpu.take_down()
        assert vcpu.runstate.state == RUNSTATE_offline
        assert vcpu.running
        vcpu.bring_up()
        assert vcpu.runstate.state == RUNSTATE_running
        rig.settle()
        assert vcpu.running
        assert vcpu.runstate.state == RUNSTATE_running
    finally:
        rig.close()
