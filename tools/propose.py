"""Write the proposals of an RPN to a file, from which a Fast R-CNN is trained and evaluated.

    python tools/propose.py checkpoint=runs/rpn/checkpoints/best.pt output=train.npz split=train
    python tools/propose.py checkpoint=runs/rpn/checkpoints/best.pt output=val.npz
    python tools/train.py model=fast_rcnn_fpn data.train.proposals=train.npz \
        data.val.proposals=val.npz
    python tools/propose.py --help    # every setting

Any checkpoint with an RPN will do: of the RPN alone, of Faster and of Mask R-CNN.
``detector propose ...`` is the same from any folder.
"""

from detector.cli import run_tool

if __name__ == "__main__":
    run_tool("propose")
