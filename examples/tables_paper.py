"""What the paper's tables and figures say, number by number.

Fan, Ng, Chan: Digital Passport. Accuracies, S and I in per cent; a pair is a
mean and its standard deviation. What the paper leaves out is left out here.
"""

NETWORKS = {"resnet": "ResNet", "vgg": "VGGNet", "alexnet": "AlexNet"}

# Accuracies of the original networks, by data and network.
ORIGINALS = {
    "cifar10": {"resnet": 92.72, "vgg": 92.24, "alexnet": 86.41},
    "cifar100": {"resnet": 70.19, "vgg": 70.86, "alexnet": 58.19},
}

# Protection strength and inconsistency against fakes of the passport's kind,
# by function, network and kind.
TABLE2 = {
    ("V1", "resnet", "T1"): ((48.39, 4.31), (0.19, 0.17)),
    ("V1", "resnet", "T2"): ((33.48, 24.21), (0.21, 0.17)),
    ("V1", "resnet", "T3"): ((76.04, 6.42), (0.37, 0.18)),
    ("V2", "resnet", "T1"): ((82.50, 0.24), (-0.21, 0.22)),
    ("V2", "resnet", "T2"): ((59.54, 23.42), (0.07, 0.18)),
    ("V2", "resnet", "T3"): ((82.51, 1.05), (0.10, 0.10)),
    ("V3", "resnet", "T1"): ((82.57, 0.27), (-0.15, 0.20)),
    ("V3", "resnet", "T2"): ((78.98, 8.95), (-0.81, 0.32)),
    ("V3", "resnet", "T3"): ((81.86, 0.93), (-0.73, 0.24)),
    ("V3", "vgg", "T3"): ((82.26, 0.35), (0.02, 0.26)),
    ("V3", "alexnet", "T3"): ((76.83, 1.59), (0.82, 0.23)),
}

# The same on CIFAR-100.
TABLE3 = {
    ("V3", "resnet", "T3"): ((71.14, 0.19), (1.99, 0.23)),
    ("V3", "vgg", "T3"): ((66.98, 0.01), (-2.88, 0.37)),
    ("V3", "alexnet", "T3"): ((61.33, 0.33), (4.21, 0.49)),
}

# Against RevA on CIFAR-10; the paper gives no deviations.
TABLE4 = {
    ("V1", "resnet", "T1"): (0.56, -0.26),
    ("V1", "resnet", "T3"): (0.19, -0.26),
    ("V1", "vgg", "T1"): (0.13, 2.7),
    ("V1", "vgg", "T3"): (0.18, 2.64),
    ("V1", "alexnet", "T1"): (0.24, -1.38),
    ("V1", "alexnet", "T3"): (0.15, -1.58),
    ("V2", "resnet", "T1"): (26.61, 0.02),
    ("V2", "resnet", "T3"): (25.36, 0.03),
    ("V2", "vgg", "T1"): (33.57, 3.56),
    ("V2", "vgg", "T3"): (31.55, 2.55),
    ("V2", "alexnet", "T1"): (19.24, -0.15),
    ("V2", "alexnet", "T3"): (18.02, -0.93),
    ("V3", "resnet", "T1"): (25.69, 0.31),
    ("V3", "resnet", "T3"): (22.93, 0.31),
    ("V3", "vgg", "T1"): (33.36, 2.77),
    ("V3", "vgg", "T3"): (22.21, 0.36),
    ("V3", "alexnet", "T1"): (14.85, -1.25),
    ("V3", "alexnet", "T3"): (12.00, -0.88),
}

# What the figures' captions say; their curves and bars are not in the text.
FIGURES = {
    3: "One passport layer over 200 epochs: from scratch, γ and β settle late; "
    "from a pretrained network the final accuracy is inferior, and in 3(c) "
    "the layer does not update at all, γ at 0 and β near -0.5.",
    5: "Accuracies with noise on 1000, 2000 and 3000 elements of the passport.",
    6: "CIFAR10, ResNet: originals, valid passports and fakes, V1 to V3 and T1 "
    "to T3. Under V1/T2 the best fake comes near 90 %.",
    7: "RevA on CIFAR10, ResNet, T3, V1 to V3: almost 92 % under V1, no more "
    "than 70 % under V2 and V3.",
    8: "CIFAR10, VGGNet and AlexNet, V3/T3: valid passports and fakes.",
    9: "CIFAR100, VGGNet and AlexNet, V3/T3: valid passports and fakes; fakes "
    "at about 1 %.",
}

# How it was measured.
REPEATS = 5
NUM_FAKES = 1000
EPOCHS = 200
