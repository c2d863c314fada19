"""The shape of the convolutional network (Chen et al. 2023), which training and prediction share."""

GROUPS = 4
#: In each group; then max pooling and dropout.
CONVOLUTIONS = 2
#: Predictors that one convolution sees; not published, assumed.
KERNEL = 3
