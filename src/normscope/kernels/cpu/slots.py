"""The arguments of every compiled loop: int64 numbers and addresses, by their place.

One layout for all loops keeps the call from Python cheap (one array) and the loops without long
signatures. An address of 0 stands for None. Tables of statistics are float64 and hold the entry
of channel c and group k at c * TABLE_C + k * TABLE_K.
"""

# what is read and written, in the dtype of the loop; see memory.py
X = 0
RESIDUAL = 1  # added before the activation
OUT = 2  # y, or dx
DY = 3
DRESIDUAL = 4
MASK = 5  # bool (N, S)

# the partition
N = 6  # samples
C = 7  # channels
S = 8  # values per sample and channel
ORDER = 9  # int64 (N,), the samples by group; 0: as they are
PIECES = 10  # a sample's S values are cut into so many units
PIECE = 11  # values per unit and channel; the last has what remains
CHUNKS = 12  # int64 (NUM_CHUNKS, 4): group, first unit, end, values; 0: one group, no mask
CHUNK = 13  # units per chunk where CHUNKS is 0
NUM_CHUNKS = 14
K = 15  # groups with statistics of their own
R = 16  # groups that chunks tell apart: K, or the rows of the affine tables where K is 1
COUNT = 17  # float64 (K,): values per channel
FILLED = 18  # float64 (K,): the same with the pseudo-values of small groups, at least 1

# tables (rows, C) with a dtype of their own, given as a code
WEIGHT = 19
BIAS = 20
AFFINE_ROWS = 21
AFFINE_DTYPE = 22
DWEIGHT = 23
DBIAS = 24
RUNNING_MEAN = 25
RUNNING_VAR = 26
RUNNING_ROWS = 27
RUNNING_DTYPE = 28

# float64
EPS = 29  # address of one number
SHARE = 30  # (K,), of the batch in the update of the running statistics; 0: no update
MEAN = 31  # tables: what normalises
RSTD = 32
BATCH_MEAN = 33  # tables: what the batch has
BATCH_M2 = 34
SUM_G = 35  # tables over R: of dy behind the activation
SUM_G_XHAT = 36
MEAN_G = 37  # tables over K; 0: the statistics did not come from x
MEAN_G_XHAT = 38
TABLE_C = 39  # strides of the tables
TABLE_K = 40
PARTIAL = 41  # (NUM_CHUNKS, 3, WIDTH): two sums of each chunk, and what they are centred by
COEFFICIENTS = 42  # (R, 5, WIDTH), in the working dtype
FOLD = 43  # rows that are read as one
WIDTH = 44  # C * FOLD

BLOCK = 45  # channels that are read as one row where S is small; 1: none
GROUPS = 46  # int64 (N,), the group of each sample; 0: chunks tell
COUNT_R = 47  # float64 (R,): values per channel of the groups that are told apart

# what is done, one phase after the other
THREADS = 48  # how many share the work
NUMBER = 49  # address of the function that tells a thread's number; 0: there is only one
BARRIER = 50  # address of the function that waits for the other threads; 0: there are none
PHASES = 51  # how many
PHASE = 52  # the first; the others follow
# of a phase
LOOP, ITEMS, STEP, TAKEN = range(4)
# address of the compiled loop; channels, blocks, chunks or groups; how many a thread takes at a
# time, since neighbours share cache lines of tables; the slot of the first of THREADS counters,
# which tell how much is taken of each thread's share
PHASE_SLOTS = 4
SLOTS = PHASE + 5 * PHASE_SLOTS  # the counters follow

# codes of the dtypes of tables
CODES = {"torch.float32": 0, "torch.float64": 1, "torch.bfloat16": 2, "torch.float16": 3}
